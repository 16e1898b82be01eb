//! What cannot be served is said when the service opens, with its file; and what happens when memory is short.

use service::{AdapterError, GenerateRequest, RequestError, Service, Settings};
use testkit::tiny::{tiny_adapter, tiny_config};

use crate::scene::{House, tone};

fn refused(house: &House) -> String {
    match house.open(&Settings::default()) {
        Ok(_) => panic!("the service opened"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_broken_base_is_named() {
    let house = House::new();
    let whole = std::fs::read(house.base()).unwrap();
    for length in [0, 3, 4, 20, 1000, whole.len() / 2, whole.len() - 1] {
        std::fs::write(house.base(), &whole[..length]).unwrap();
        let error = refused(&house);
        assert!(error.contains("Tiny.gguf"), "{length}: {error}");
    }
    std::fs::write(house.base(), vec![b'x'; 5000]).unwrap();
    assert!(refused(&house).contains("Tiny.gguf"));
    std::fs::remove_file(house.base()).unwrap();
    assert!(refused(&house).contains("Tiny.gguf"));
}

#[test]
fn an_adapter_of_another_model_is_named_with_its_tensor() {
    let house = House::new();
    let mut other = tiny_config();
    other.intermediate_size = 96;
    house.persona("odd", "", &tiny_adapter(1, &other, 4, 1.0));
    let error = refused(&house);
    assert!(error.contains("persona \"odd\""), "{error}");
    assert!(error.contains("layers.0.mlp.gate_proj"), "{error}");
}

#[test]
fn an_adapter_trained_with_other_tokens_is_refused() {
    let house = House::new();
    for (key, what) in [
        ("lory.tokenizer_hash", "another tokenizer (abc)"),
        ("lory.template_hash", "another chat template (abc)"),
    ] {
        let mut adapter = tone(1);
        adapter.metadata.insert(key.to_owned(), "abc".to_owned());
        house.persona("odd", "", &adapter);
        let error = refused(&house);
        assert!(error.contains(what) && error.contains("odd"), "{error}");
    }
}

#[test]
fn a_persona_cannot_bear_the_bases_name() {
    let house = House::new();
    house.persona("tiny", "", &tone(1));
    let error = refused(&house);
    assert!(
        error.contains("personas/tiny: \"tiny\" is the name of the base"),
        "{error}"
    );
}

/// A service whose adapter memory holds one tone, not two.
fn cramped(house: &House) -> Service {
    let roomy = house.open(&Settings::default()).unwrap();
    let bytes: Vec<u64> = roomy
        .engine()
        .adapters()
        .iter()
        .map(|adapter| adapter.bytes)
        .collect();
    assert_eq!(bytes.len(), 2);
    let mut settings = Settings::default();
    settings.engine.adapter_memory = bytes[0] + bytes[1] - 1;
    house.open(&settings).unwrap()
}

fn say(service: &Service, who: &str) -> Result<String, RequestError> {
    service
        .generate(&GenerateRequest::new(Some(who), "Hello!"))
        .map(|answer| answer.text)
}

#[test]
fn tones_take_turns_where_memory_holds_one() {
    let house = House::new();
    let roomy = house.open(&Settings::default()).unwrap();
    let cramped = cramped(&house);
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
    let house = House::new();
    let service = cramped(&house);
    say(&service, "warm").unwrap();
    house.persona("formal", "version = 2", &tone(99));
    let error = say(&service, "formal").unwrap_err().to_string();
    assert!(error.contains("have changed since the start"), "{error}");
    say(&service, "warm").unwrap();
}
