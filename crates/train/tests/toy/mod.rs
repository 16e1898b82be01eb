//! A toy learner: each trained token pulls the adapter towards a target that depends on the token.

use formats::peft::{LoraPair, Module};
use train::progress::{Observer, ReferenceProgress, RunPlan, Snapshot, StepMetrics, Validation};
use train::{
    BatchItem, Example, Learner, LoraGrads, LoraParams, LossSum, TrainError, TrainSettings,
    TrainTask,
};

/// loss(token) = 1/2 * sum over weights w_i of (w_i - target(token, i))^2 / weights.
#[derive(Default)]
pub struct Toy {
    /// Calls of `forward_backward`.
    pub steps: usize,
    /// Rows of each call, as (adapter, first token).
    pub batches: Vec<Vec<(usize, u32)>>,
    /// From this call on, returns a loss that is not a number.
    pub diverges_at: Option<usize>,
}

fn target(token: u32, index: usize) -> f64 {
    f64::from(((token as usize * 31 + index * 17) % 23) as u32) / 23.0 - 0.4
}

impl Toy {
    fn run(
        params: &[LoraParams],
        batch: &[BatchItem<'_>],
        mut grads: Option<(&[f32], &mut [LoraGrads])>,
    ) -> Vec<LossSum> {
        let mut sums = vec![LossSum::default(); params.len()];
        for item in batch {
            let example = item.example;
            for (&token, _) in example
                .tokens
                .iter()
                .zip(&example.loss_mask)
                .filter(|(_, trained)| **trained)
            {
                let weights: Vec<f32> = train::params::tensors(&params[item.adapter])
                    .flatten()
                    .copied()
                    .collect();
                let count = weights.len().max(1) as f64;
                let pull = |(i, w): (usize, &f32)| (f64::from(*w) - target(token, i)) / count;
                let pulls: Vec<f64> = weights.iter().enumerate().map(pull).collect();
                sums[item.adapter].add(LossSum {
                    loss: 0.5 * pulls.iter().map(|p| p * p * count).sum::<f64>(),
                    tokens: 1,
                });
                if let Some((scale, grads)) = &mut grads {
                    let scale = f64::from(scale[item.adapter]);
                    for (g, p) in grads[item.adapter].tensors_mut().flatten().zip(pulls) {
                        *g += (scale * p) as f32;
                    }
                }
            }
        }
        sums
    }
}

impl Learner for Toy {
    fn forward_backward(
        &mut self,
        params: &[LoraParams],
        batch: &[BatchItem<'_>],
        loss_scale: &[f32],
        grads: &mut [LoraGrads],
    ) -> Result<Vec<LossSum>, TrainError> {
        self.steps += 1;
        self.batches.push(
            batch
                .iter()
                .map(|item| (item.adapter, item.example.tokens[0]))
                .collect(),
        );
        let mut sums = Self::run(params, batch, Some((loss_scale, grads)));
        if self.diverges_at.is_some_and(|at| self.steps >= at) {
            sums[0].loss = f64::NAN;
        }
        Ok(sums)
    }

    fn losses(
        &mut self,
        params: &[LoraParams],
        batch: &[BatchItem<'_>],
    ) -> Result<Vec<LossSum>, TrainError> {
        let mut sums = Self::run(params, batch, None);
        if self.diverges_at == Some(0) {
            sums[0].loss = f64::NAN;
        }
        Ok(sums)
    }
}

/// `count` rows of different lengths whose first token is their number. Two thirds of their tokens are trained.
pub fn rows(count: usize, from: u32) -> Vec<Example> {
    let row = |i: u32| {
        let length = 3 + (i * 7) % 11;
        let tokens: Vec<u32> = (0..length)
            .map(|t| {
                if t == 0 {
                    from + i
                } else {
                    (i * 13 + t * 5) % 50
                }
            })
            .collect();
        let loss_mask = (0..length).map(|t| t > length / 3).collect();
        Example { tokens, loss_mask }
    };
    (0..count as u32).map(row).collect()
}

/// An adapter of 2 x 3 weights.
pub fn params() -> LoraParams {
    let pair = LoraPair {
        layer: 0,
        module: Module::Q,
        rank: 1,
        inputs: 3,
        outputs: 3,
        scale: 2.0,
        a: vec![0.5, -0.25, 1.0],
        b: vec![0.0; 3],
    };
    LoraParams { pairs: vec![pair] }
}

/// A task over `count` rows.
pub fn task(name: &str, count: usize, from: u32) -> TrainTask {
    TrainTask {
        name: name.to_owned(),
        settings: TrainSettings {
            lr: Some(0.02),
            batch_rows: 4,
            save_every: 3,
            ..TrainSettings::default()
        },
        train: rows(count, from),
        validation: rows(9, from + 1000),
        init: params().into(),
        metrics: None,
        data: train::task::DataReport::default(),
        preference: None,
        initial_adapter: None,
    }
}

/// Records all progress.
#[derive(Default)]
pub struct Notes {
    pub plan: Option<RunPlan>,
    pub resumed: Option<u64>,
    pub steps: Vec<StepMetrics>,
    pub validations: Vec<(usize, Validation)>,
    pub checkpoints: Vec<u64>,
    pub stopped_early: Vec<(usize, u64)>,
    pub finished: Option<u64>,
    /// The step, whether it was the last, and the first adapter's parameters.
    pub snapshots: Vec<(u64, bool, LoraParams)>,
    /// Where each task's reference came from, as (task, how).
    pub references: Vec<(usize, &'static str)>,
    /// Raises its flag once this step was seen.
    pub stop_at: Option<(u64, &'static std::sync::atomic::AtomicBool)>,
}

impl Observer for Notes {
    fn started(&mut self, plan: &RunPlan, resumed: Option<u64>) {
        self.plan = Some(plan.clone());
        self.resumed = resumed;
    }

    fn step(&mut self, metrics: &StepMetrics) {
        self.steps.push(metrics.clone());
        if let Some((step, flag)) = self.stop_at
            && metrics.step == step
        {
            flag.store(true, std::sync::atomic::Ordering::Relaxed);
        }
    }

    fn reference(&mut self, adapter: usize, _: usize, from: ReferenceProgress<'_>) {
        let how = match from {
            ReferenceProgress::Read(_) => "read",
            ReferenceProgress::Damaged(_) => "damaged",
            ReferenceProgress::Computing { .. } => "computing",
        };
        self.references.push((adapter, how));
    }

    fn validated(&mut self, adapter: usize, validation: &Validation) {
        self.validations.push((adapter, *validation));
    }

    fn checkpointed(&mut self, _: &std::path::Path, step: u64) {
        self.checkpoints.push(step);
    }

    fn stopped_early(&mut self, adapter: usize, step: u64) {
        self.stopped_early.push((adapter, step));
    }

    fn snapshot(&mut self, snapshot: &Snapshot<'_>) {
        let first = snapshot.adapters[0].clone();
        self.snapshots.push((snapshot.step, snapshot.done, first));
    }

    fn finished(&mut self, steps: u64) {
        self.finished = Some(steps);
    }
}

/// A task with a constant rate that is far too high: its validation loss falls, then rises again.
pub fn overshooting(name: &str) -> TrainTask {
    let mut task = task(name, 12, 0);
    task.settings = TrainSettings {
        lr: Some(0.6),
        epochs: 6,
        schedule: train::schedule::LrDecay::Constant,
        warmup_ratio: 0.0,
        ..task.settings
    };
    let mut init = task.init.values().unwrap();
    init.pairs[0].a = vec![0.05, -0.02, 0.1];
    task.init = init.into();
    task
}
