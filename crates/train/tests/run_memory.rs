//! Memory of a run while it is planned and resumed. One test in a process of its own, because it looks at the most memory of the process.
#![cfg(target_os = "linux")]

mod peak;

use std::sync::atomic::AtomicBool;

use formats::peft::Module;
use peak::peak;
use train::initial_params::InitialParams;
use train::lora_init::TargetLinear;
use train::progress::Observer;
use train::trainer::{self, Outcome, RunOptions};
use train::{
    BatchItem, Example, Learner, LoraGrads, LoraParams, LossSum, TrainError, TrainSettings,
    TrainTask,
};

/// Sets the most resident memory of this process to what it has now, and returns that in bytes.
fn reset_peak() -> u64 {
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    peak()
}

/// A learner with a constant loss and gradients of zero.
struct Constant;

fn losses(batch: &[BatchItem<'_>]) -> Vec<LossSum> {
    let tokens = batch.iter().map(|item| item.example.trained_tokens()).sum();
    vec![LossSum { loss: 1.0, tokens }]
}

impl Learner for Constant {
    fn forward_backward(
        &mut self,
        _: &[LoraParams],
        batch: &[BatchItem<'_>],
        _: &[f32],
        _: &mut [LoraGrads],
    ) -> Result<Vec<LossSum>, TrainError> {
        Ok(losses(batch))
    }

    fn losses(
        &mut self,
        _: &[LoraParams],
        batch: &[BatchItem<'_>],
    ) -> Result<Vec<LossSum>, TrainError> {
        Ok(losses(batch))
    }
}

struct Silent;
impl Observer for Silent {}

fn task() -> TrainTask {
    let settings = TrainSettings {
        lr: Some(1e-3),
        rank: 512,
        ..TrainSettings::default()
    };
    let linear = TargetLinear {
        layer: 0,
        module: Module::Q,
        inputs: 1 << 14,
        outputs: 1 << 14,
    };
    let row = Example {
        tokens: vec![1, 2, 3],
        loss_mask: vec![false, true, true],
    };
    TrainTask {
        name: "large".to_owned(),
        init: InitialParams::drawn(&[linear], &settings),
        settings,
        train: vec![row.clone(); 8],
        validation: vec![row],
        metrics: None,
        data: train::task::DataReport::default(),
        preference: None,
        initial_adapter: None,
    }
}

#[test]
fn planned_run_has_no_parameters_and_resumed_run_has_one_copy() {
    let folder = tempfile::tempdir().unwrap();
    let options = RunOptions {
        checkpoint: Some(folder.path().join("checkpoint.safetensors")),
        ..RunOptions::default()
    };
    let parameters: u64 = 4 * 512 * (2 << 14);
    let before = reset_peak();
    let prepared = trainer::prepare(vec![task()], &options).unwrap();
    let estimate = prepared.estimate(&testkit::tiny::tiny_config());
    assert_eq!(estimate.memory.gradients, parameters);
    let planned = peak() - before;
    assert!(planned < parameters / 8, "{planned} bytes to plan");

    let never = AtomicBool::new(false);
    let trained = prepared.train(&mut Constant, &mut Silent, &never).unwrap();
    assert!(matches!(trained, Outcome::Finished(_)));
    drop(trained);

    // The parameters, two moments and the best parameters; the gradients are zero pages that nothing has written.
    let before = reset_peak();
    let prepared = trainer::prepare(vec![task()], &options).unwrap();
    let resumed = prepared.train(&mut Constant, &mut Silent, &never).unwrap();
    let Outcome::Finished(adapters) = resumed else {
        panic!("{resumed:?}");
    };
    assert_eq!(adapters.len(), 1);
    let resumed = peak() - before;
    assert!(resumed < 5 * parameters, "{resumed} bytes to resume");
}
