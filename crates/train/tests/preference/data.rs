//! Rows are matched to pairs.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use formats::gguf::Gguf;
use train::{Example, PreferenceSettings, TrainTask};

use super::Folder;

fn load(
    folder: &Path,
    change: impl Fn(&mut PreferenceSettings),
    siblings: &[(&str, &str)],
) -> Result<TrainTask, String> {
    use formats::chat_template::ChatTemplate;
    use formats::tokenizer::Tokenizer;
    use train::preference::RejectedPersona;
    use train::task::TrainTaskSpec;

    let gguf = Gguf::parse(Arc::new(testkit::tiny_gguf(1)), "tiny").unwrap();
    let tokenizer = Tokenizer::from_gguf(&gguf).unwrap();
    let template = ChatTemplate::from_gguf(&gguf, &tokenizer).unwrap();
    let mut preference = PreferenceSettings::default();
    change(&mut preference);
    let settings = train::TrainSettings {
        preference: Some(preference),
        vary_identifiers: 1,
        max_length: 120,
        validation_fraction: 0.3,
        ..train::TrainSettings::default()
    };
    let siblings: Vec<RejectedPersona> = siblings
        .iter()
        .map(|(name, file)| RejectedPersona {
            name: (*name).to_owned(),
            files: vec![folder.join(file)],
            columns: dataset::Columns::default(),
        })
        .collect();
    let train = folder.join("train.jsonl");
    let source = TrainTaskSpec {
        name: "own",
        train: &train,
        validation: None,
        system: Some("Be kind."),
        settings,
        metrics: None,
        max_bytes: usize::MAX,
        stop: &dataset::stop::NEVER,
    };
    let config = testkit::tiny::tiny_config();
    train::TrainTask::load_pairs(source, &siblings, &config, &tokenizer, &template)
        .map_err(|error| error.to_string())
}

fn tone(tone: &str, count: usize) -> String {
    let row = |i: usize| {
        format!("{{\"instruction\":\"Where is order {i}?\",\"output\":\"{tone} order {i}.\"}}\n")
    };
    (1000..1000 + count).map(row).collect()
}

#[test]
fn rows_and_rejected_personas_give_pairs_with_the_same_prompt() {
    let folder = Folder::new();
    fs::write(folder.path("train.jsonl"), tone("Yay", 12)).unwrap();
    fs::write(folder.path("stern.jsonl"), tone("Hm", 10)).unwrap();
    let task = load(folder.0.path(), |_| (), &[("stern", "stern.jsonl")]).unwrap();
    let preference = task.preference.as_ref().unwrap();
    let counts = &preference.counts;
    assert_eq!((counts.rows, counts.pairs, counts.unanswered), (12, 10, 2));
    // Each pair is trained once as written and once varied; validation pairs are not varied.
    assert_eq!(task.train.len() + 2 * task.validation.len(), 20);
    assert!(!task.validation.is_empty());
    let both = task.train.iter().zip(&preference.train.examples);
    for (chosen, rejected) in both {
        let prompt = |example: &Example| {
            let end = example.loss_mask.iter().position(|on| *on).unwrap();
            example.tokens[..end].to_vec()
        };
        assert_eq!(prompt(chosen), prompt(rejected));
        assert_ne!(chosen, rejected);
    }
    // Two siblings give two pairs a row.
    fs::write(folder.path("flat.jsonl"), tone("So", 12)).unwrap();
    let siblings = [("stern", "stern.jsonl"), ("flat", "flat.jsonl")];
    let task = load(folder.0.path(), |_| (), &siblings).unwrap();
    assert_eq!(task.preference.unwrap().counts.pairs, 22);
}

#[test]
fn rows_that_cannot_be_paired_are_rejected_with_counts() {
    let folder = Folder::new();
    let write = |name: &str, text: &str| fs::write(folder.path(name), text).unwrap();
    write("train.jsonl", &tone("Yay", 3));
    write("same.jsonl", &tone("Yay", 2));
    write(
        "stern.jsonl",
        "{\"prompt\":\"Something else\",\"completion\":\"No.\"}",
    );
    let refusal = |siblings: &[(&str, &str)]| load(folder.0.path(), |_| (), siblings).unwrap_err();
    let none = refusal(&[("stern", "stern.jsonl")]);
    assert!(
        none.contains("train.jsonl: none of its")
            && none.contains("questions found none, 0 found the same answer"),
        "{none}"
    );
    assert!(
        none.contains("of stern (") && none.contains("stern.jsonl)"),
        "{none}"
    );
    let same = refusal(&[("same", "same.jsonl")]);
    assert!(same.contains("found the same answer"), "{same}");
    assert!(refusal(&[]).contains("have no `rejected` answer; name the persona"));
    assert!(refusal(&[("gone", "gone.jsonl")]).starts_with("cannot read "));
    let own = "{\"prompt\":\"q\",\"chosen\":\"a\",\"rejected\":\"b\"}\n";
    write("train.jsonl", own);
    assert!(load(folder.0.path(), |_| (), &[]).is_ok());
    assert!(
        refusal(&[("stern", "stern.jsonl")]).contains(
            "have their own `rejected` answers, so those of another persona cannot be used"
        )
    );
    write(
        "train.jsonl",
        &format!("{own}{{\"prompt\":\"q\",\"completion\":\"a\"}}\n"),
    );
    assert!(refusal(&[]).contains("train.jsonl:2: field `chosen`: is missing"));
    let long = format!(
        "{{\"prompt\":\"q\",\"chosen\":\"a\",\"rejected\":\"{}\"}}\n",
        "b c d ".repeat(200)
    );
    write("train.jsonl", &long);
    assert!(
        refusal(&[])
            .contains("every one of the 2 pairs has an answer longer than `max_length` = 120")
    );
    let others: String = (0..9).map(|i| own.replace('q', &format!("q{i}"))).collect();
    write("train.jsonl", &format!("{long}{others}"));
    let task = load(folder.0.path(), |_| (), &[]).unwrap();
    assert_eq!(task.preference.as_ref().unwrap().counts.pairs, 10);
    assert!(task.data.dropped > 0, "{:?}", task.data);
    assert!(task.train.iter().all(|example| example.tokens.len() <= 120));
    let beta = load(folder.0.path(), |preference| preference.beta = 1e9, &[]).unwrap_err();
    assert!(beta.contains("setting `preference.beta`"), "{beta}");
}
