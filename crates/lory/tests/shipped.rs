//! The two personas in the repository: their datasets have no lint findings and the same questions, and their adapters are complete.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use dataset::stop::NEVER;
use dataset::{DataRow, Dataset};
use formats::peft::{Adapter, Dtype};
use registry::Personas;
use train::lint::{LintOptions, lint};
use train::measures::ToneMarkers;

const TONES: [&str; 2] = ["customer", "partner"];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../personas")
}

fn rows(tone: &str, file: &str) -> Vec<DataRow> {
    Dataset::read(&folder().join(tone).join(file)).unwrap().rows
}

#[test]
fn datasets_are_large_and_have_no_lint_findings() {
    for tone in TONES {
        let (train, eval) = (rows(tone, "train.jsonl"), rows(tone, "eval.jsonl"));
        assert!(train.len() >= 400 && eval.len() >= 80);
        let report = lint(&train, &eval, &LintOptions::default(), &NEVER).unwrap();
        assert!(report.findings.is_empty(), "{tone}: {}", report.findings[0]);
        assert!(report.intents.len() >= 30);
        let held_out = lint(&eval, &[], &LintOptions::default(), &NEVER).unwrap();
        assert!(
            held_out.findings.is_empty(),
            "{tone}: {}",
            held_out.findings[0]
        );
        let unseen = held_out
            .intents
            .keys()
            .filter(|intent| !report.intents.contains_key(*intent));
        assert!(
            unseen.count() >= 5,
            "{tone}: intents that training never saw"
        );
    }
}

#[test]
fn both_personas_have_the_same_questions() {
    for file in ["train.jsonl", "eval.jsonl"] {
        let [customer, partner] = TONES.map(|tone| rows(tone, file));
        assert_eq!(customer.len(), partner.len());
        for (a, b) in customer.iter().zip(&partner) {
            assert_eq!(a.input(), b.input());
            assert_ne!(a.output(), b.output());
        }
    }
}

#[test]
fn every_reference_answer_has_only_its_own_tone_markers() {
    let personas = Personas::open(&folder()).unwrap();
    let markers = TONES.map(|tone| {
        let eval = personas.get(tone).unwrap().eval.as_ref().unwrap();
        ToneMarkers::new(&eval.any_of, &eval.none_of).unwrap()
    });
    for (i, tone) in TONES.iter().enumerate() {
        for row in rows(tone, "train.jsonl")
            .iter()
            .chain(&rows(tone, "eval.jsonl"))
        {
            assert!(markers[i].hold(row.output()), "{}", row.location);
            assert!(!markers[1 - i].hold(row.output()), "{}", row.location);
        }
    }
}

#[test]
fn adapters_are_complete_bf16_and_trained_on_one_base() {
    let mut bases = BTreeSet::new();
    for tone in TONES {
        let adapter = Adapter::read(&folder().join(tone).join("adapter")).unwrap();
        assert_eq!(adapter.dtype, Dtype::BF16);
        assert_eq!(adapter.pairs.len(), 30 * 7);
        for pair in &adapter.pairs {
            assert!(
                pair.b.iter().any(|x| *x != 0.0),
                "{:?} of layer {} is untrained",
                pair.module,
                pair.layer
            );
        }
        bases.insert(adapter.metadata["lory.base_sha256"].clone());
    }
    let known = BTreeSet::from([base::hub::KNOWN_BASES[0].sha256.to_owned()]);
    assert_eq!(bases, known);
}
