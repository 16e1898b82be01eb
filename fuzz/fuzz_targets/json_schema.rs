//! A client's JSON schema: it is refused, or becomes a grammar whose answer is JSON or is cut off. An input that takes long
//! fails by libFuzzer's `-timeout`.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use registry::Personas;
use service::{GenerateRequest, OutputFormat, RequestError, Service, Settings};
use testkit::home::{BASE, TestHome};

struct Running {
    service: Service,
    _home: TestHome,
}

static RUNNING: LazyLock<Running> = LazyLock::new(|| {
    let home = TestHome::new("tiny.gguf", 256);
    std::fs::create_dir_all(home.personas()).unwrap();
    let personas = Personas::open(&home.personas()).unwrap();
    Running {
        service: Service::open(&home.base(), personas, &Settings::default()).unwrap(),
        _home: home,
    }
});

fuzz_target!(|data: &[u8]| {
    let Ok(schema) = serde_json::from_slice(data) else {
        return;
    };
    let mut request = GenerateRequest::new(Some(BASE), "x");
    request.format = OutputFormat::JsonSchema {
        schema,
        strict: data.len() % 2 == 0,
    };
    request.max_new_tokens = Some(8);
    match RUNNING.service.generate(&request) {
        Ok(_) | Err(RequestError::Schema { .. } | RequestError::GrammarLimit(_)) => {}
        Err(error) => panic!("{error}"),
    }
});
