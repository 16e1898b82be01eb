//! Dropout on the adapters' input, on a tiny random model: its gradients, what it must not change, and that interruptions and
//! micro-batches do not change it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use formats::gguf::{GgmlType, Gguf};
use kernels::{Compute, Device, DeviceChoice};
use model::Model;
use testkit::{tiny_adapter, tiny_gguf_as};
use train::preference::{PairCounts, PreferenceData, RejectedExamples};
use train::progress::{NoObserver, Observer, StepMetrics};
use train::trainer::{Outcome, RunOptions, TrainedAdapter, train};
use train::{
    BatchItem, DropoutMask, Example, Learner, LoraGrads, LoraParams, LossSum, ModelLearner,
    PreferenceSettings, TrainError, TrainSettings, TrainTask,
};

fn tiny() -> Arc<Model> {
    let gguf = Gguf::parse(Arc::new(tiny_gguf_as(3, GgmlType::Q4_1)), "tiny").unwrap();
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

fn example(seed: u32, tokens: usize) -> Example {
    let tokens: Vec<u32> = (0..tokens as u32)
        .map(|i| (seed * 7919 + i * 104_729) % 250)
        .collect();
    let loss_mask = (0..tokens.len()).map(|i| i >= 4).collect();
    Example { tokens, loss_mask }
}

fn mask(row: u64) -> Option<DropoutMask> {
    Some(DropoutMask {
        share: 0.3,
        seed: 5,
        step: 2,
        row,
    })
}

/// Losses and gradients of a batch under `masks`.
fn run(
    learner: &mut ModelLearner,
    params: &[LoraParams],
    batch: &[(usize, Example)],
    masks: &[Option<DropoutMask>],
) -> (Vec<f64>, Vec<LoraGrads>) {
    let items: Vec<BatchItem<'_>> = batch
        .iter()
        .zip(masks)
        .map(|((adapter, example), mask)| BatchItem {
            adapter: *adapter,
            example,
            mask: *mask,
        })
        .collect();
    let mut grads: Vec<LoraGrads> = params.iter().map(LoraGrads::zeros_like).collect();
    let losses = learner
        .forward_backward(params, &items, &vec![0.05; params.len()], &mut grads)
        .unwrap();
    (losses.iter().map(|sum| sum.loss).collect(), grads)
}

#[test]
fn gradients_match_finite_differences_with_the_same_masks() {
    let model = tiny();
    let mut learner = ModelLearner::new(model.clone(), Compute::F32);
    let mut params = vec![adapter(&model, 1)];
    let batch = [(0, example(1, 11)), (0, example(2, 17))];
    let masks = [mask(0), mask(1)];
    let (losses, grads) = run(&mut learner, &params, &batch, &masks);
    let (plain, _) = run(&mut learner, &params, &batch, &[None, None]);
    assert_ne!(losses, plain, "nothing was dropped");
    for p in 0..params[0].pairs.len() {
        for b in [false, true] {
            let pair = &grads[0].pairs[p];
            let grad = if b { pair.b.clone() } else { pair.a.clone() };
            let length = grad
                .iter()
                .map(|g| f64::from(*g).powi(2))
                .sum::<f64>()
                .sqrt();
            let (layer, module) = (params[0].pairs[p].layer, params[0].pairs[p].module);
            let what = format!("layer {layer} {module:?} {}", if b { "B" } else { "A" });
            assert!(length > 1e-7, "{what}: no gradient");
            let step = 5e-3;
            let mut moved = |sign: f64| {
                let pair = &mut params[0].pairs[p];
                let values = if b { &mut pair.b } else { &mut pair.a };
                let before = values.clone();
                for (v, g) in values.iter_mut().zip(&grad) {
                    *v += (sign * step * f64::from(*g) / length) as f32;
                }
                let loss = run(&mut learner, &params, &batch, &masks).0[0] * 0.05;
                let pair = &mut params[0].pairs[p];
                *(if b { &mut pair.b } else { &mut pair.a }) = before;
                loss
            };
            let slope = (moved(1.0) - moved(-1.0)) / (2.0 * step);
            assert!(
                (slope - length).abs() < 0.02 * length + 2e-5,
                "{what}: finite difference {slope:.6}, gradient {length:.6}"
            );
        }
    }
}

#[test]
fn dropout_of_one_adapter_does_not_change_another() {
    let model = tiny();
    let mut learner = ModelLearner::new(model.clone(), Compute::Int8);
    let params = vec![adapter(&model, 1), adapter(&model, 2)];
    let batch = [(1, example(1, 20)), (0, example(2, 33)), (1, example(3, 9))];
    let masks = [mask(0), None, mask(1)];
    let (losses, grads) = run(&mut learner, &params, &batch, &masks);
    let (alone, alone_grads) = run(&mut learner, &params, &batch[1..2], &[None]);
    assert_eq!((losses[0], &grads[0]), (alone[0], &alone_grads[0]));
    let rest = [batch[0].clone(), batch[2].clone()];
    let (alone, alone_grads) = run(&mut learner, &params, &rest, &[mask(0), mask(1)]);
    assert_eq!((losses[1], &grads[1]), (alone[1], &alone_grads[1]));
}

#[test]
fn cached_activations_equal_recomputed_ones() {
    let model = tiny();
    let params = vec![adapter(&model, 1), adapter(&model, 2)];
    let short = [(1, example(1, 20)), (0, example(2, 33)), (1, example(3, 9))];
    let long = [(1, example(1, 40)), (0, example(2, 63))];
    let masks = [mask(0), None, mask(1)];
    for compute in [Compute::F32, Compute::Int8] {
        let mut keeping = ModelLearner::new(model.clone(), compute);
        let mut again = ModelLearner::new(model.clone(), compute);
        again.set_activation_cache(0);
        // 2048 bytes a row and layer: room for one of two layers, of the 59 rows of the short batch and of 101.
        let mut some = ModelLearner::new(model.clone(), compute);
        some.set_activation_cache(210_000);
        for (batch, masks) in [
            (&short[..], &masks[..]),
            (&long, &masks[..2]),
            (&short, &masks),
        ] {
            let want = run(&mut again, &params, batch, masks);
            assert!(run(&mut keeping, &params, batch, masks) == want);
            assert!(run(&mut some, &params, batch, masks) == want);
        }
    }
}

fn task(model: &Model, batch_rows: usize, gradient_accumulation: usize) -> TrainTask {
    TrainTask {
        name: "one".into(),
        settings: TrainSettings {
            lr: Some(5e-3),
            dropout: 0.2,
            rank: 4,
            batch_rows,
            gradient_accumulation,
            epochs: 2,
            save_every: 1,
            ..TrainSettings::default()
        },
        train: (0..12).map(|i| example(i, 8 + i as usize)).collect(),
        validation: vec![example(40, 16)],
        init: adapter(model, 1).into(),
        metrics: None,
        data: train::task::DataReport::default(),
        preference: None,
        initial_adapter: None,
    }
}

fn trained(task: TrainTask, model: &Arc<Model>, options: &RunOptions) -> TrainedAdapter {
    let mut learner = ModelLearner::new(model.clone(), Compute::Int8);
    let never = AtomicBool::new(false);
    match train(vec![task], options, &mut learner, &mut NoObserver, &never).unwrap() {
        Outcome::Finished(mut trained) => trained.remove(0),
        Outcome::Interrupted { .. } => panic!("the run was interrupted"),
    }
}

/// Stops after a step.
struct StopAt<'a>(u64, &'a AtomicBool);

impl Observer for StopAt<'_> {
    fn step(&mut self, metrics: &StepMetrics) {
        if metrics.step == self.0 {
            self.1.store(true, Ordering::Relaxed);
        }
    }
}

#[test]
fn resumed_run_has_the_dropout_of_an_uninterrupted_run() {
    let model = tiny();
    let whole = trained(task(&model, 4, 1), &model, &RunOptions::default());
    let mut plain = task(&model, 4, 1);
    plain.settings.dropout = 0.0;
    assert_ne!(
        whole.params,
        trained(plain, &model, &RunOptions::default()).params
    );
    for stop in [1, 4] {
        let folder = tempfile::tempdir().unwrap();
        let options = RunOptions {
            checkpoint: Some(folder.path().join("checkpoint")),
            ..RunOptions::default()
        };
        let flag = AtomicBool::new(false);
        let mut learner = ModelLearner::new(model.clone(), Compute::Int8);
        let tasks = vec![task(&model, 4, 1)];
        train(
            tasks,
            &options,
            &mut learner,
            &mut StopAt(stop, &flag),
            &flag,
        )
        .unwrap();
        assert!(flag.load(Ordering::Relaxed));
        assert!(
            trained(task(&model, 4, 1), &model, &options) == whole,
            "stopped at {stop}"
        );
    }
}

/// Loss and norm of the gradient of the first step.
fn first_step(mut task: TrainTask, model: &Arc<Model>, batch_tokens: usize) -> [f64; 2] {
    task.settings.max_steps = Some(1);
    let options = RunOptions {
        batch_tokens,
        ..RunOptions::default()
    };
    let trained = trained(task, model, &options);
    let mut lines = trained
        .metrics
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let line = lines.find(|line| line["kind"] == "step").unwrap();
    ["loss", "grad_norm"].map(|key| line[key].as_f64().unwrap())
}

#[test]
fn micro_batches_have_the_dropout_of_the_large_batch() {
    let model = tiny();
    for pairs in [false, true] {
        let task = |rows, accumulation| {
            let task = task(&model, rows, accumulation);
            if pairs { paired(task) } else { task }
        };
        let large = first_step(task(4, 1), &model, 0);
        for (rows, accumulation, tokens) in [(2, 2, 0), (1, 4, 0), (4, 1, 20)] {
            let cut = first_step(task(rows, accumulation), &model, tokens);
            for (cut, large) in cut.iter().zip(large) {
                assert!((cut - large).abs() < 1e-4 * large, "{cut} {large}");
            }
        }
        let mut other = task(4, 1);
        other.settings.dropout = 0.0;
        assert_ne!(first_step(other, &model, 0), large);
    }
}

/// The task with a rejected answer for every row.
fn paired(mut task: TrainTask) -> TrainTask {
    let rejected = |rows: &[Example], from: u32| RejectedExamples {
        examples: (0..rows.len() as u32)
            .map(|i| example(from + i, 12))
            .collect(),
        reference_logps: Vec::new(),
    };
    task.preference = Some(PreferenceData {
        train: rejected(&task.train, 60),
        validation: rejected(&task.validation, 90),
        counts: PairCounts::default(),
    });
    task.settings.preference = Some(PreferenceSettings::default());
    task
}

/// Records the masks of the rows that it passes on.
struct Seen {
    learner: ModelLearner,
    of_losses: Vec<Option<DropoutMask>>,
    of_steps: Vec<Option<DropoutMask>>,
}

impl Learner for Seen {
    fn forward_backward(
        &mut self,
        params: &[LoraParams],
        batch: &[BatchItem<'_>],
        loss_scale: &[f32],
        grads: &mut [LoraGrads],
    ) -> Result<Vec<LossSum>, TrainError> {
        self.of_steps.extend(batch.iter().map(|item| item.mask));
        self.learner
            .forward_backward(params, batch, loss_scale, grads)
    }

    fn losses(
        &mut self,
        params: &[LoraParams],
        batch: &[BatchItem<'_>],
    ) -> Result<Vec<LossSum>, TrainError> {
        self.of_losses.extend(batch.iter().map(|item| item.mask));
        self.learner.losses(params, batch)
    }
}

#[test]
fn every_training_row_of_every_step_has_another_mask_and_validation_has_none() {
    let model = tiny();
    let mut seen = Seen {
        learner: ModelLearner::new(model.clone(), Compute::Int8),
        of_losses: Vec::new(),
        of_steps: Vec::new(),
    };
    let (options, never) = (RunOptions::default(), AtomicBool::new(false));
    let tasks = vec![task(&model, 4, 1)];
    train(tasks, &options, &mut seen, &mut NoObserver, &never).unwrap();
    assert!(!seen.of_losses.is_empty() && seen.of_losses.iter().all(Option::is_none));
    // Two epochs of 12 rows.
    let masks: Vec<DropoutMask> = seen.of_steps.into_iter().map(Option::unwrap).collect();
    assert_eq!(masks.len(), 24);
    for (i, mask) in masks.iter().enumerate() {
        assert!(!masks[..i].contains(mask), "{mask:?}");
        assert_eq!((mask.step, mask.share, mask.seed), (i as u64 / 4, 0.2, 42));
    }
}

#[test]
fn same_seed_gives_the_same_bytes_and_another_seed_does_not() {
    let model = tiny();
    let run = |seed| {
        let mut task = task(&model, 4, 1);
        task.settings.seed = seed;
        task.settings.shuffle = false;
        trained(task, &model, &RunOptions::default()).params
    };
    assert!(run(1) == run(1));
    assert!(run(1) != run(2));
}
