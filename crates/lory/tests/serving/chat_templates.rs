//! Bases whose chat template cannot render some conversations, or any.

use std::sync::Arc;

use base::LoadOptions;
use formats::gguf::Gguf;
use serde_json::{Value, json};
use service::{Service, Settings};
use testkit::home::{BASE, TestHome};
use testkit::server::TestServer;

use crate::setup;

const CHAT: &str = "/v1/chat/completions";

/// A template that refuses system messages, as Gemma's does.
const NO_SYSTEM: &str = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif \
    %}{{ '<|im_start|>' ~ m.role ~ '\n' ~ m.content ~ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ \
    '<|im_start|>assistant\n' }}{% endif %}";

/// [`setup::home`] with another template in the base's file.
fn home_with_template(template: &str) -> TestHome {
    let home = setup::home();
    let mut bytes = std::fs::read(home.base()).unwrap();
    let gguf = Gguf::parse(Arc::new(bytes.clone()), "tiny").unwrap();
    let old = gguf.get_str("tokenizer.chat_template").unwrap().unwrap();
    let old = old.as_bytes();
    // A comment makes it as long as the old one.
    let padding = old.len() - template.len() - "{##}".len();
    let new = format!("{template}{{#{}#}}", " ".repeat(padding));
    let found = bytes.windows(old.len()).position(|part| part == old);
    let at = found.unwrap();
    bytes[at..at + old.len()].copy_from_slice(new.as_bytes());
    std::fs::write(home.base(), bytes).unwrap();
    home
}

fn started(home: &TestHome, system_as_user: bool) -> (Arc<Service>, TestServer) {
    let settings = Settings {
        load: LoadOptions {
            system_as_user,
            ..LoadOptions::default()
        },
        ..Settings::default()
    };
    let service = Arc::new(setup::open(home, &settings).unwrap());
    (Arc::clone(&service), TestServer::start(service))
}

/// Status, code, param and message.
fn refused(server: &TestServer, path: &str, body: &Value) -> (u16, String, Value, String) {
    server.post(path, body).error()
}

#[test]
fn rejected_system_prompt_is_reported_and_is_not_the_clients_fault() {
    let home = home_with_template(NO_SYSTEM);
    let (service, server) = started(&home, false);
    let problems = service.template_problems().join("\n");
    for expected in [
        "a system message: the chat template refused the conversation: System role not supported",
        "the system prompt of persona warm: ",
        "the system prompt of persona formal: ",
    ] {
        assert!(problems.contains(expected), "{problems}");
    }
    assert!(!problems.contains("a user's message:"), "{problems}");

    let ask = json!({"prompt": "Hi", "user_type": "warm", "max_new_tokens": 2});
    let (status, code, param, message) = refused(&server, "/generate", &ask);
    assert_eq!(
        (status, code.as_str(), &param),
        (500, "chat_template_failed", &Value::Null)
    );
    for part in [
        "the system prompt of warm",
        "System role not supported",
        "--system-as-user",
        BASE,
    ] {
        assert!(message.contains(part), "{message}");
    }

    let user = json!({"role": "user", "content": "Hi"});
    let mut own = json!({"model": BASE, "max_tokens": 2, "messages": [{"role": "system", "content": "Be brief."}, user]});
    let (status, code, param, message) = refused(&server, CHAT, &own);
    assert_eq!((status, code.as_str()), (400, "invalid_value"));
    assert_eq!(param, "messages[0]");
    assert!(message.contains("System role not supported"), "{message}");
    own["messages"] = json!([user]);
    assert_eq!(server.post(CHAT, &own).status, 200);
    own["tools"] = json!([{"type": "function", "function": {"name": "now"}}]);
    let (status, _, param, _) = refused(&server, CHAT, &own);
    assert_eq!((status, param), (400, json!("tools")));
}

#[test]
fn system_text_goes_in_front_of_the_first_user_message() {
    let home = home_with_template(NO_SYSTEM);
    let (service, server) = started(&home, true);
    assert_eq!(service.template_problems(), Vec::<String>::new());
    let tokens = |messages: Value| {
        let body = json!({"model": BASE, "max_tokens": 1, "messages": messages});
        let answer = server.post(CHAT, &body);
        assert_eq!(answer.status, 200, "{}", answer.text);
        answer.json()["usage"]["prompt_tokens"].clone()
    };
    let merged = json!([{"role": "user", "content": "Be brief.\n\nHi"}]);
    let apart =
        json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]);
    assert_eq!(tokens(apart), tokens(merged));
    let ask = json!({"prompt": "Hi", "user_type": "warm", "max_new_tokens": 2});
    assert_eq!(server.post("/generate", &ask).status, 200);

    // A template with a system role stays as it is.
    let (usual, _server) = started(&setup::home(), true);
    let (same, _other) = started(&setup::home(), false);
    assert_eq!(usual.base().template.hash(), same.base().template.hash());
    assert_ne!(usual.base().template.hash(), service.base().template.hash());
}

#[test]
fn failing_template_is_blamed_and_not_the_request() {
    let home = home_with_template("line\n{{ messages[0].content.no_such_method() }}");
    let (service, server) = started(&home, false);
    let problems = service.template_problems().join("\n");
    assert!(problems.contains("a user's message: "), "{problems}");
    let body = json!({"model": BASE, "messages": [{"role": "user", "content": "Hi"}]});
    let (status, code, param, message) = refused(&server, CHAT, &body);
    assert_eq!(
        (status, code.as_str(), param),
        (500, "chat_template_failed", Value::Null)
    );
    for part in ["no_such_method", "(line 2)", "not the request"] {
        assert!(message.contains(part), "{message}");
    }
}
