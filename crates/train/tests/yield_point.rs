//! Yield points between layers: a learner waits before each layer and releases the device after each pass. A run that is
//! stopped at any of them resumes to the same bytes.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use formats::gguf::{GgmlType, Gguf};
use kernels::{Compute, Device, DeviceChoice};
use model::{Model, YieldPoint};
use testkit::tiny_gguf_as;
use train::lora_init::{lora_init, target_linears};
use train::progress::NoObserver;
use train::task::DataReport;
use train::trainer::{Outcome, RunOptions, TrainedAdapter, train};
use train::{BatchItem, Example, Learner, ModelLearner, TrainError, TrainSettings, TrainTask};

/// Counts its calls and stops the run at one of them.
#[derive(Default)]
struct CountingYieldPoint {
    waits: AtomicU64,
    stop_at: AtomicU64,
    releases: AtomicU64,
    order: Mutex<Vec<char>>,
}

impl YieldPoint for CountingYieldPoint {
    fn wait(&self) -> bool {
        self.order.lock().unwrap().push('e');
        self.waits.fetch_add(1, SeqCst) + 1 != self.stop_at.load(SeqCst)
    }

    // How often a layer pauses depends on the machine.
    fn pause(&self) -> bool {
        true
    }

    fn release(&self) {
        self.order.lock().unwrap().push('l');
        self.releases.fetch_add(1, SeqCst);
    }
}

fn model() -> Arc<Model> {
    let gguf = Gguf::parse(Arc::new(tiny_gguf_as(3, GgmlType::Q4_1)), "tiny").unwrap();
    Arc::new(
        Model::load(
            &gguf,
            Device::open(DeviceChoice::Cpu { threads: Some(2) }).unwrap(),
        )
        .unwrap(),
    )
}

fn example(seed: u32) -> Example {
    let tokens: Vec<u32> = (0..14).map(|i| (seed * 7919 + i * 104_729) % 250).collect();
    let loss_mask = (0..tokens.len()).map(|i| i >= 6).collect();
    Example { tokens, loss_mask }
}

fn task(model: &Model) -> TrainTask {
    let settings = TrainSettings {
        rank: 2,
        batch_rows: 2,
        epochs: 2,
        lr: Some(1e-3),
        ..TrainSettings::default()
    };
    let target_linears = target_linears(model.config(), &settings.modules().unwrap());
    TrainTask {
        name: "gated".to_owned(),
        init: lora_init(&target_linears, &settings).into(),
        train: (0..6).map(example).collect(),
        validation: (10..12).map(example).collect(),
        settings,
        metrics: None,
        data: DataReport::default(),
        preference: None,
        initial_adapter: None,
    }
}

fn options(folder: &Path) -> RunOptions {
    RunOptions {
        base: "tiny".to_owned(),
        checkpoint: Some(folder.join("checkpoint.safetensors")),
        ..RunOptions::default()
    }
}

fn run(model: &Arc<Model>, folder: &Path, yield_point: &Arc<CountingYieldPoint>) -> Outcome {
    let mut learner = ModelLearner::new(model.clone(), Compute::Int8).yielding(yield_point.clone());
    let never = AtomicBool::new(false);
    let tasks = vec![task(model)];
    train(
        tasks,
        &options(folder),
        &mut learner,
        &mut NoObserver,
        &never,
    )
    .unwrap()
}

fn finished(outcome: Outcome) -> Vec<TrainedAdapter> {
    match outcome {
        Outcome::Finished(trained) => trained,
        Outcome::Interrupted { step, .. } => panic!("interrupted at {step}"),
    }
}

#[test]
fn every_layer_waits_and_every_pass_releases_the_yield_point() {
    let model = model();
    let yield_point = Arc::new(CountingYieldPoint::default());
    let mut learner = ModelLearner::new(model.clone(), Compute::Int8).yielding(yield_point.clone());
    let task = task(&model);
    let params = [task.init.values().unwrap()];
    let batch: Vec<BatchItem<'_>> = task
        .train
        .iter()
        .map(|row| BatchItem::new(0, row))
        .collect();
    learner.losses(&params, &batch).unwrap();
    // Every layer forward, and pieces of the head of 32 trained rows.
    let trained = |row: &train::Example| row.loss_mask.iter().skip(1).filter(|t| **t).count();
    let pieces = task.train.iter().map(trained).sum::<usize>().div_ceil(32);
    assert!(pieces > 1);
    let forward = (model.config().layers + pieces) as u64;
    assert_eq!(yield_point.waits.swap(0, SeqCst), forward);
    let mut grads = [train::LoraGrads::zeros_like(&params[0])];
    learner
        .forward_backward(&params, &batch, &[1.0], &mut grads)
        .unwrap();
    let backward = model.config().layers as u64;
    assert_eq!(yield_point.waits.swap(0, SeqCst), forward + backward);
    assert_eq!(yield_point.releases.load(SeqCst), 2);
    // Without a yield point the head runs in larger chunks, to the same bits.
    let mut free = [train::LoraGrads::zeros_like(&params[0])];
    ModelLearner::new(model.clone(), Compute::Int8)
        .forward_backward(&params, &batch, &[1.0], &mut free)
        .unwrap();
    assert_eq!(grads, free);

    // Stopped in the middle, the learner returns the error and releases the device; afterwards it computes as before.
    yield_point.stop_at.store(2, SeqCst);
    let stopped = learner.losses(&params, &batch);
    assert!(matches!(stopped, Err(TrainError::Stopped)), "{stopped:?}");
    assert_eq!(yield_point.releases.load(SeqCst), 3);
    assert_eq!(yield_point.order.lock().unwrap().last(), Some(&'l'));
}

/// Waits nowhere, and stops at a pause within a layer once `stop` is set.
#[derive(Default)]
struct PausingYieldPoint {
    pauses: AtomicU64,
    stop: AtomicBool,
}

impl YieldPoint for PausingYieldPoint {
    fn wait(&self) -> bool {
        true
    }

    fn pause(&self) -> bool {
        self.pauses.fetch_add(1, SeqCst);
        !self.stop.load(SeqCst)
    }

    fn release(&self) {}
}

#[test]
fn long_layer_pauses_to_the_same_bits_and_can_be_stopped_within() {
    let model = model();
    let task = task(&model);
    let params = [task.init.values().unwrap()];
    // Far more than the work of one pause.
    let rows: Vec<Example> = (0..800).map(example).collect();
    let batch: Vec<BatchItem<'_>> = rows.iter().map(|row| BatchItem::new(0, row)).collect();
    let run = |learner: &mut ModelLearner| {
        let mut grads = [train::LoraGrads::zeros_like(&params[0])];
        let losses = learner.forward_backward(&params, &batch, &[1.0], &mut grads);
        losses.map(|losses| (losses, grads))
    };
    let expected = run(&mut ModelLearner::new(model.clone(), Compute::Int8)).unwrap();

    let yield_point = Arc::new(PausingYieldPoint::default());
    let mut learner = ModelLearner::new(model.clone(), Compute::Int8).yielding(yield_point.clone());
    assert_eq!(run(&mut learner).unwrap(), expected);
    assert!(yield_point.pauses.load(SeqCst) > 0);

    yield_point.stop.store(true, SeqCst);
    let stopped = run(&mut learner);
    assert!(matches!(stopped, Err(TrainError::Stopped)), "{stopped:?}");
    yield_point.stop.store(false, SeqCst);
    assert_eq!(run(&mut learner).unwrap(), expected);
}

#[test]
fn run_stopped_at_any_layer_resumes_to_the_same_bytes() {
    let model = model();
    let whole = tempfile::tempdir().unwrap();
    let yield_point = Arc::new(CountingYieldPoint::default());
    let expected = finished(run(&model, whole.path(), &yield_point));
    let layers = yield_point.waits.load(SeqCst);
    let state = |folder: &Path| fs::read(folder.join("checkpoint.safetensors")).unwrap();

    let mut stopped = 0;
    for stop_at in (1..layers).step_by(3) {
        let folder = tempfile::tempdir().unwrap();
        let yield_point = Arc::new(CountingYieldPoint::default());
        yield_point.stop_at.store(stop_at, SeqCst);
        let first = run(&model, folder.path(), &yield_point);
        stopped += usize::from(matches!(first, Outcome::Interrupted { .. }));
        // The same run again, without a stop.
        yield_point.stop_at.store(0, SeqCst);
        assert_eq!(finished(run(&model, folder.path(), &yield_point)), expected);
        assert!(
            state(folder.path()) == state(whole.path()),
            "at layer {stop_at}"
        );
    }
    assert!(stopped > 5, "{stopped} of them were stopped");
}
