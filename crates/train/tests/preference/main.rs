//! Preference tuning: its gradient against finite differences and a slow reference on a tiny model, and the loop's guarantees
//! with a toy learner.

mod data;
mod gradient;
mod learning;
mod resumed;
#[expect(dead_code, reason = "a task in it is for tests of early stopping")]
#[path = "../toy/mod.rs"]
mod toy;

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use formats::gguf::{GgmlType, Gguf};
use kernels::{Device, DeviceChoice};
use model::Model;
use testkit::{tiny_adapter, tiny_gguf_as};
use toy::{Notes, Toy};
use train::preference::{PairCounts, PreferenceData, RejectedExamples};
use train::trainer::{Outcome, RunOptions, TrainedAdapter, train};
use train::{BatchItem, Example, Learner, LoraParams, PreferenceSettings, TrainError, TrainTask};

fn settings(beta: f64, sft_weight: f64) -> PreferenceSettings {
    PreferenceSettings {
        beta,
        sft_weight,
        ..PreferenceSettings::default()
    }
}

fn tiny() -> Arc<Model> {
    let gguf = Gguf::parse(Arc::new(tiny_gguf_as(3, GgmlType::F32)), "tiny").unwrap();
    Arc::new(
        Model::load(
            &gguf,
            Device::open(DeviceChoice::Cpu { threads: Some(2) }).unwrap(),
        )
        .unwrap(),
    )
}

fn adapter(model: &Model, seed: u64) -> LoraParams {
    LoraParams {
        pairs: tiny_adapter(seed, model.config(), 4, 1.5).pairs,
    }
}

/// A prompt that depends on `seed` and an answer that depends on `answer`.
fn example(seed: u32, prompt: u32, answer: u32, length: u32) -> Example {
    let asked = (0..prompt).map(|i| (seed * 7919 + i * 104_729) % 250);
    let rest = (0..length).map(|i| (answer * 6007 + i * 31_337) % 250);
    Example {
        tokens: asked.chain(rest).collect(),
        loss_mask: (0..prompt + length).map(|i| i >= prompt).collect(),
    }
}

fn items(pairs: &[(usize, [Example; 2])]) -> Vec<BatchItem<'_>> {
    let mut items = Vec::new();
    for (adapter, pair) in pairs {
        let adapter = *adapter;
        items.extend(pair.iter().map(|example| BatchItem::new(adapter, example)));
    }
    items
}

/// A task over `count` pairs, whose chosen answers are the toy's rows.
fn pair_task(name: &str, count: usize, from: u32) -> TrainTask {
    let mut task = toy::task(name, count, from);
    let rejected = |rows: &[Example]| RejectedExamples {
        examples: rows
            .iter()
            .map(|row| {
                // Shorter or longer than the chosen answer, and of other tokens.
                let mut other = row.clone();
                let tokens = other.tokens.iter_mut().enumerate().skip(1);
                tokens.for_each(|(t, token)| *token = (*token * 3 + t as u32 + 5) % 50);
                if row.tokens[0].is_multiple_of(2) {
                    other.tokens.push(7);
                    other.loss_mask.push(true);
                }
                other
            })
            .collect(),
        reference_logps: Vec::new(),
    };
    task.settings.preference = Some(settings(0.5, 0.2));
    task.preference = Some(PreferenceData {
        train: rejected(&task.train),
        validation: rejected(&task.validation),
        counts: PairCounts::default(),
    });
    task
}

fn run_on(
    tasks: Vec<TrainTask>,
    options: &RunOptions,
    learner: &mut dyn Learner,
    notes: &mut Notes,
) -> Result<Outcome, TrainError> {
    let never = AtomicBool::new(false);
    let flag = notes.stop_at.map_or(&never, |stop| stop.1);
    train(tasks, options, learner, notes, flag)
}

fn finished(outcome: Outcome) -> Vec<TrainedAdapter> {
    match outcome {
        Outcome::Finished(trained) => trained,
        Outcome::Interrupted { step, .. } => panic!("interrupted at {step}"),
    }
}

fn run(tasks: Vec<TrainTask>) -> Vec<TrainedAdapter> {
    let options = RunOptions::default();
    finished(run_on(tasks, &options, &mut Toy::default(), &mut Notes::default()).unwrap())
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Folder(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn options(&self) -> RunOptions {
        RunOptions {
            base: "a base".into(),
            checkpoint: Some(self.path("run/checkpoint.safetensors")),
            ..RunOptions::default()
        }
    }

    fn tasks(&self) -> Vec<TrainTask> {
        let (mut one, two) = (pair_task("one", 22, 0), toy::task("two", 15, 500));
        one.metrics = Some(self.path("one/metrics.jsonl"));
        vec![one, two]
    }

    /// The files of the run's state, by name.
    fn state(&self) -> Vec<(String, Vec<u8>)> {
        let entries = fs::read_dir(self.path("run")).unwrap();
        let mut files: Vec<(String, Vec<u8>)> = entries
            .map(|entry| {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                (name, fs::read(path).unwrap())
            })
            .collect();
        files.sort();
        files
    }

    fn run(&self, notes: &mut Notes) -> Result<Outcome, TrainError> {
        run_on(self.tasks(), &self.options(), &mut Toy::default(), notes)
    }
}
