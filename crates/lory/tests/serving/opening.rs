//! What cannot be served is said when the service opens, with its file; and what happens when memory is short.

use service::{AdapterError, GenerateRequest, RequestError, Service, Settings};
use testkit::home::TestHome;
use testkit::tiny::adapter;
use testkit::tiny::{tiny_adapter, tiny_config};

use crate::setup;

fn refused(home: &TestHome) -> String {
    match setup::open(&home, &Settings::default()) {
        Ok(_) => panic!("the service opened"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_broken_base_is_named() {
    let home = setup::home();
    let whole = std::fs::read(home.base()).unwrap();
    for length in [0, 3, 4, 20, 1000, whole.len() / 2, whole.len() - 1] {
        std::fs::write(home.base(), &whole[..length]).unwrap();
        let error = refused(&home);
        assert!(error.contains("Tiny.gguf"), "{length}: {error}");
    }
    std::fs::write(home.base(), vec![b'x'; 5000]).unwrap();
    assert!(refused(&home).contains("Tiny.gguf"));
    std::fs::remove_file(home.base()).unwrap();
    assert!(refused(&home).contains("Tiny.gguf"));
}

#[test]
fn an_adapter_of_another_model_is_named_with_its_tensor() {
    let home = setup::home();
    let mut other = tiny_config();
    other.intermediate_size = 96;
    home.persona("odd", "", Some(&tiny_adapter(1, &other, 4, 1.0)));
    let error = refused(&home);
    assert!(error.contains("persona \"odd\""), "{error}");
    assert!(error.contains("layers.0.mlp.gate_proj"), "{error}");
}

#[test]
fn an_adapter_trained_with_other_tokens_is_refused() {
    let home = setup::home();
    for (key, what) in [
        ("lory.tokenizer_hash", "another tokenizer (abc)"),
        ("lory.template_hash", "another chat template (abc)"),
    ] {
        let mut adapter = adapter(1);
        adapter.metadata.insert(key.to_owned(), "abc".to_owned());
        home.persona("odd", "", Some(&adapter));
        let error = refused(&home);
        assert!(error.contains(what) && error.contains("odd"), "{error}");
    }
}

#[test]
fn a_persona_cannot_bear_the_bases_name() {
    let home = setup::home();
    home.persona("tiny", "", Some(&adapter(1)));
    let error = refused(&home);
    assert!(
        error.contains("personas/tiny: \"tiny\" is the name of the base"),
        "{error}"
    );
}

/// A service whose adapter memory holds one tone, not two.
fn cramped(home: &TestHome) -> Service {
    let roomy = setup::open(&home, &Settings::default()).unwrap();
    let bytes: Vec<u64> = roomy
        .engine()
        .adapters()
        .iter()
        .map(|adapter| adapter.bytes)
        .collect();
    assert_eq!(bytes.len(), 2);
    let mut settings = Settings::default();
    settings.engine.adapter_memory = bytes[0] + bytes[1] - 1;
    setup::open(&home, &settings).unwrap()
}

fn say(service: &Service, who: &str) -> Result<String, RequestError> {
    service
        .generate(&GenerateRequest::new(Some(who), "Hello!"))
        .map(|answer| answer.text)
}

#[test]
fn tones_take_turns_where_memory_holds_one() {
    let home = setup::home();
    let roomy = setup::open(&home, &Settings::default()).unwrap();
    let cramped = cramped(&home);
    for who in ["warm", "formal", "warm", "warm", "formal"] {
        assert_eq!(say(&cramped, who).unwrap(), say(&roomy, who).unwrap());
        assert_eq!(cramped.engine().adapters().len(), 1);
    }
    let both = say(&cramped, "warm+formal").unwrap_err();
    let RequestError::Adapter { source, .. } = &both else {
        panic!("{both}")
    };
    assert!(matches!(**source, AdapterError::Pool(_)), "{both}");
    assert_eq!(say(&cramped, "warm").unwrap(), say(&roomy, "warm").unwrap());
}

#[test]
fn files_that_changed_meanwhile_are_not_passed_off_as_the_old_ones() {
    let home = setup::home();
    let service = cramped(&home);
    say(&service, "warm").unwrap();
    home.persona("formal", "version = 2", Some(&adapter(99)));
    let error = say(&service, "formal").unwrap_err().to_string();
    assert!(error.contains("have changed since the start"), "{error}");
    say(&service, "warm").unwrap();
}
