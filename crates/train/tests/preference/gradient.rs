//! The gradient of the preference objective, and that one forward pass is enough to compute it.

use std::sync::Arc;

use kernels::{Compute, KvType, LoraType, Run, Span};
use model::{Batch, Buffers, Model};
use testkit::Logits;
use train::preference::dpo_loss;
use train::{
    BatchItem, Example, Learner, LoraGrads, LoraParams, LossSum, ModelLearner, PreferenceSettings,
    TrainError,
};

use super::{adapter, example, items, settings, tiny};

/// Pairs of three questions, answers of different lengths, for the adapters 0, 1, 0.
fn pairs() -> Vec<(usize, [Example; 2])> {
    vec![
        (0, [example(1, 8, 11, 12), example(1, 8, 21, 5)]),
        (1, [example(2, 5, 12, 30), example(2, 5, 22, 33)]),
        (0, [example(3, 3, 13, 6), example(3, 3, 23, 9)]),
    ]
}

/// References at some distance from the adapters' log-probabilities.
fn references(losses: &[LossSum]) -> Vec<[f64; 2]> {
    let shift = |(i, pair): (usize, &[LossSum])| {
        [
            -pair[0].loss + 2.0 - i as f64,
            -pair[1].loss - 1.5 * i as f64,
        ]
    };
    losses.chunks_exact(2).enumerate().map(shift).collect()
}

/// The weights that the objective gives to the losses of pairs.
fn weights(settings: &PreferenceSettings, references: &[[f64; 2]], losses: &[LossSum]) -> Vec<f32> {
    let of_pair = |(losses, reference): (&[LossSum], &[f64; 2])| {
        dpo_loss(settings, losses[0], losses[1], *reference).weights
    };
    let pairs = losses.chunks_exact(2).zip(references);
    pairs.flat_map(of_pair).map(|w| w as f32).collect()
}

/// The sum of the pairs' objectives, each times its adapter's scale, from log-probabilities, by their definition.
fn objective(
    settings: &PreferenceSettings,
    pairs: &[(usize, [Example; 2])],
    log_probs: &[f64],
    references: &[[f64; 2]],
    scale: &[f32],
) -> f64 {
    let mut sum = 0.0;
    for (i, (adapter, pair)) in pairs.iter().enumerate() {
        let (chosen, rejected) = (log_probs[2 * i], log_probs[2 * i + 1]);
        let ratio = (chosen - references[i][0]) - (rejected - references[i][1]);
        let sigmoid = 1.0 / (1.0 + (-settings.beta * ratio).exp());
        let tokens = pair[0].trained_tokens() as f64;
        let loss = -sigmoid.ln() + settings.sft_weight * -chosen / tokens;
        sum += loss * f64::from(scale[*adapter]);
    }
    sum
}

/// ln p(answer | prompt) from the serving path's logits, row by row.
fn log_prob(model: &Model, params: &LoraParams, example: &Example) -> f64 {
    let rows = example.tokens.len() - 1;
    let packed = model.pack_adapter(&params.pairs, LoraType::F32).unwrap();
    let blocks: Vec<u32> = (0..8).collect();
    let mut cache = model
        .new_cache(model.config().layers, blocks.len(), KvType::F32)
        .unwrap();
    let (mut buffers, mut logits) = (Buffers::new(model.device()), model.device().tensor());
    let all: Vec<u32> = (0..rows as u32).collect();
    model.forward(
        Batch {
            tokens: &example.tokens[..rows],
            spans: &[Span {
                first: 0,
                rows,
                past: 0,
                blocks: &blocks,
            }],
            runs: &[Run {
                first: 0,
                rows,
                slots: vec![(0, 1.0)],
            }],
            adapters: &[&packed],
            dropout: &[],
        },
        &mut cache,
        &mut buffers,
        &all,
        Compute::F32,
        &mut logits,
    );
    let logits = Logits::read(&logits);
    let of_row = |row: usize| {
        let logits = logits.row(row);
        let sum: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum();
        f64::from(logits[example.tokens[row + 1] as usize]) - sum.ln()
    };
    (0..rows)
        .filter(|row| example.loss_mask[row + 1])
        .map(of_row)
        .sum()
}

#[test]
fn gradient_equals_that_of_the_objective_computed_from_logits() {
    let model = tiny();
    let mut learner = ModelLearner::new(model.clone(), Compute::F32);
    let mut params = vec![adapter(&model, 1), adapter(&model, 2)];
    let (pairs, scale) = (pairs(), [0.5f32, 1.0]);
    let batch = items(&pairs);
    let losses = learner.item_losses(&params, &batch).unwrap();
    let slow = |params: &[LoraParams]| -> Vec<f64> {
        let each = batch.iter();
        each.map(|item| log_prob(&model, &params[item.adapter], item.example))
            .collect()
    };
    for (loss, slow) in losses.iter().zip(slow(&params)) {
        assert!(
            (loss.loss + slow).abs() < 1e-4 * slow.abs(),
            "{loss:?} {slow}"
        );
    }
    let references = references(&losses);
    for settings in [settings(0.3, 0.0), settings(0.1, 1.0)] {
        let mut grads: Vec<LoraGrads> = params.iter().map(LoraGrads::zeros_like).collect();
        let weigh = |losses: &[LossSum]| weights(&settings, &references, losses);
        let seen = learner
            .forward_backward_weighted(&params, &batch, &scale, &weigh, &mut grads)
            .unwrap();
        assert_eq!(seen, losses);
        for a in 0..params.len() {
            for p in 0..params[a].pairs.len() {
                for b in [false, true] {
                    let of = &grads[a].pairs[p];
                    let grad = if b { of.b.clone() } else { of.a.clone() };
                    // Along the gradient itself: the derivative is its length.
                    let squares = grad.iter().map(|g| f64::from(*g).powi(2));
                    let length = squares.sum::<f64>().sqrt();
                    let what = format!("{settings:?} adapter {a} pair {p} {b}");
                    assert!(length > 1e-7, "{what}: no gradient");
                    let step = 1e-2;
                    let mut moved = |sign: f64| {
                        let pair = &mut params[a].pairs[p];
                        let values = if b { &mut pair.b } else { &mut pair.a };
                        let before = values.clone();
                        for (v, g) in values.iter_mut().zip(&grad) {
                            *v += (sign * step * f64::from(*g) / length) as f32;
                        }
                        let value =
                            objective(&settings, &pairs, &slow(&params), &references, &scale);
                        let pair = &mut params[a].pairs[p];
                        *(if b { &mut pair.b } else { &mut pair.a }) = before;
                        value
                    };
                    let slope = (moved(1.0) - moved(-1.0)) / (2.0 * step);
                    assert!(
                        (slope - length).abs() < 0.02 * length + 1e-4,
                        "{what}: finite difference {slope:.6}, gradient {length:.6}"
                    );
                }
            }
        }
    }
}

/// A learner with only the required methods, so that weighing uses the trait's default of two passes.
struct TwoPasses(ModelLearner);

impl Learner for TwoPasses {
    fn forward_backward(
        &mut self,
        params: &[LoraParams],
        batch: &[BatchItem<'_>],
        loss_scale: &[f32],
        grads: &mut [LoraGrads],
    ) -> Result<Vec<LossSum>, TrainError> {
        self.0.forward_backward(params, batch, loss_scale, grads)
    }

    fn losses(
        &mut self,
        params: &[LoraParams],
        batch: &[BatchItem<'_>],
    ) -> Result<Vec<LossSum>, TrainError> {
        self.0.losses(params, batch)
    }
}

#[test]
fn one_forward_pass_gives_the_gradients_of_two() {
    let model = tiny();
    let params = vec![adapter(&model, 1), adapter(&model, 2)];
    let pairs = pairs();
    let batch = items(&pairs);
    let zeros = || params.iter().map(LoraGrads::zeros_like).collect::<Vec<_>>();
    for (compute, within) in [(Compute::F32, 1e-5), (Compute::Int8, 2e-2)] {
        let mut learner = ModelLearner::new(model.clone(), compute);
        let losses = learner.item_losses(&params, &batch).unwrap();
        let (settings, references) = (settings(0.2, 0.5), references(&losses));
        let weigh = |losses: &[LossSum]| weights(&settings, &references, losses);
        let run = |learner: &mut dyn Learner| {
            let mut grads = zeros();
            let losses = learner
                .forward_backward_weighted(&params, &batch, &[1.0, 0.5], &weigh, &mut grads)
                .unwrap();
            (losses, grads)
        };
        let fast = run(&mut learner);
        let slow = run(&mut TwoPasses(learner));
        assert_eq!(fast.0, slow.0, "{compute:?}");
        for (fast, slow) in fast.1.iter().zip(&slow.1) {
            for (fast, slow) in fast.tensors().zip(slow.tensors()) {
                let size = slow.iter().fold(0f32, |most, x| most.max(x.abs()));
                let off = fast.iter().zip(slow).map(|(a, b)| (a - b).abs());
                let off = off.fold(0f32, f32::max);
                assert!(off <= within * size, "{compute:?}: {off} of {size}");
            }
        }
        let few = |_: &[LossSum]| vec![1.0];
        let error = run_error(learner_of(&model, compute), &params, &batch, &few);
        assert!(error.contains("1 weights for 6 rows"), "{error}");
    }
}

fn learner_of(model: &Arc<Model>, compute: Compute) -> ModelLearner {
    ModelLearner::new(model.clone(), compute)
}

fn run_error(
    mut learner: ModelLearner,
    params: &[LoraParams],
    batch: &[BatchItem<'_>],
    weigh: &dyn Fn(&[LossSum]) -> Vec<f32>,
) -> String {
    let mut grads: Vec<LoraGrads> = params.iter().map(LoraGrads::zeros_like).collect();
    learner
        .forward_backward_weighted(params, batch, &[1.0, 1.0], weigh, &mut grads)
        .unwrap_err()
        .to_string()
}
