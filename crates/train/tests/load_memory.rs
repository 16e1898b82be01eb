//! Memory while a task is loaded. One test in a process of its own, because it looks at the most memory that the process ever had.
#![cfg(target_os = "linux")]

mod peak;

use std::io::Write as _;
use std::sync::Arc;

use formats::chat_template::ChatTemplate;
use formats::gguf::Gguf;
use formats::tokenizer::Tokenizer;
use peak::peak;
use train::task::TrainTaskSpec;
use train::{TrainSettings, TrainTask};

#[test]
fn rows_and_their_copies_are_not_in_memory_together() {
    let gguf = Gguf::parse(Arc::new(testkit::tiny_gguf(1)), "tiny").unwrap();
    let tokenizer = Tokenizer::from_gguf(&gguf).unwrap();
    let template = ChatTemplate::from_gguf(&gguf, &tokenizer).unwrap();
    let config = testkit::tiny_config();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    let mut file = std::io::BufWriter::new(std::fs::File::create(&path).unwrap());
    // A column that is in memory with its row and is not tokenized.
    let long = "a b ".repeat(64 << 10);
    for n in 0..64 {
        let row = format!(r#"{{"prompt":"question {n}","completion":"answer","intent":"{long}"}}"#);
        writeln!(file, "{row}").unwrap();
    }
    drop(file);
    let spec = TrainTaskSpec {
        name: "tone",
        train: &path,
        validation: None,
        system: None,
        settings: TrainSettings {
            vary_identifiers: 1,
            validation_fraction: 0.0,
            ..TrainSettings::default()
        },
        metrics: None,
        max_bytes: usize::MAX,
        stop: &dataset::stop::NEVER,
    };
    let before = peak();
    let task = TrainTask::load(spec, &config, &tokenizer, &template).unwrap();
    assert_eq!(task.train.len(), 128);
    let grown = peak() - before;
    assert!(grown < 12 << 20, "{grown} bytes for a file of 16 MiB");
}
