//! Packing does not change results: each example has the same loss, and each adapter the same gradient, as alone.

use std::sync::Arc;

use formats::gguf::{GgmlType, Gguf};
use kernels::{Compute, Device, DeviceChoice};
use model::Model;
use testkit::{tiny_adapter, tiny_gguf_as};
use train::batch::pieces;
use train::{BatchItem, Example, Learner, LoraGrads, LoraParams, LossSum, ModelLearner};

fn learner(compute: Compute) -> (ModelLearner, LoraParams) {
    let gguf = Gguf::parse(Arc::new(tiny_gguf_as(3, GgmlType::Q4_1)), "tiny").unwrap();
    let model = Arc::new(
        Model::load(
            &gguf,
            Device::open(DeviceChoice::Cpu { threads: Some(2) }).unwrap(),
        )
        .unwrap(),
    );
    let params = LoraParams {
        pairs: tiny_adapter(7, model.config(), 4, 1.5).pairs,
    };
    (ModelLearner::new(model, compute), params)
}

/// Lengths on both sides of a block's end, with the loss after a prompt, on an answer in the middle, and on a conversation.
fn examples() -> Vec<Example> {
    let example = |(seed, length): (usize, usize)| {
        let token = |i: usize| ((seed * 7919 + i * 104_729) % 250) as u32;
        Example {
            tokens: (0..length).map(token).collect(),
            loss_mask: (0..length)
                .map(|i| i > 0 && (i * 3 / length > 0 || seed == 2 && i % 5 > 2))
                .collect(),
        }
    };
    let lengths = [16, 3, 47, 33, 32, 17, 2, 70];
    lengths.into_iter().enumerate().map(example).collect()
}

/// One item for each example; `adapter` returns the adapter that it trains.
fn items(examples: &[Example], adapter: fn(usize) -> usize) -> Vec<BatchItem<'_>> {
    let item = |(i, example)| BatchItem::new(adapter(i), example);
    examples.iter().enumerate().map(item).collect()
}

#[test]
fn packed_example_has_the_loss_it_has_alone_bit_for_bit() {
    for compute in [Compute::F32, Compute::Bits16, Compute::Int8] {
        let (mut learner, params) = learner(compute);
        let examples = examples();
        let alone: Vec<LossSum> = examples
            .iter()
            .map(|example| {
                let item = [BatchItem::new(0, example)];
                learner
                    .losses(std::slice::from_ref(&params), &item)
                    .unwrap()[0]
            })
            .collect();
        // One adapter for each example, all with equal parameters, so that the learner returns one sum for each example.
        let each = vec![params.clone(); examples.len()];
        let packed = learner.losses(&each, &items(&examples, |i| i)).unwrap();
        assert_eq!(packed, alone, "{compute:?}");
        assert!(alone.iter().all(|sum| sum.tokens > 0 && sum.loss > 0.0));

        // The rows of one adapter form one run: only the order of addition differs.
        let one = std::slice::from_ref(&params);
        let together = learner.losses(one, &items(&examples, |_| 0)).unwrap()[0];
        let (tokens, loss) = alone
            .iter()
            .fold((0, 0.0), |sum, one| (sum.0 + one.tokens, sum.1 + one.loss));
        assert_eq!(together.tokens, tokens);
        assert!(
            (together.loss - loss).abs() < 1e-12 * loss,
            "{compute:?}: {} packed, {loss} alone",
            together.loss
        );
    }
}

#[test]
fn packed_example_does_not_depend_on_its_neighbours() {
    let (mut learner, params) = learner(Compute::F32);
    let mut examples = examples();
    let each = vec![params; examples.len()];
    let before = learner.losses(&each, &items(&examples, |i| i)).unwrap();
    // Another text in the same place, and another length, which shifts all later rows.
    for (i, keep) in [(2, 47), (4, 9)] {
        examples[i].tokens.truncate(keep);
        examples[i].loss_mask.truncate(keep);
        examples[i].loss_mask[keep - 1] = true;
        for token in &mut examples[i].tokens {
            *token = (*token + 101) % 250;
        }
    }
    let after = learner.losses(&each, &items(&examples, |i| i)).unwrap();
    for i in 0..examples.len() {
        assert_eq!(before[i] == after[i], i != 2 && i != 4, "example {i}");
    }
}

#[test]
fn packed_gradients_are_the_sum_of_single_gradients_for_any_token_limit() {
    let (mut learner, params) = learner(Compute::F32);
    let examples = examples();
    let lengths: Vec<usize> = examples.iter().map(|e| e.tokens.len()).collect();
    let one = std::slice::from_ref(&params);
    let all = items(&examples, |_| 0);
    let mut gradients = |budget: usize| {
        let mut grads = vec![LoraGrads::zeros_like(&params)];
        let pieces = pieces(&lengths, budget);
        for piece in pieces.iter().cloned() {
            let scale = [0.01];
            let call = learner.forward_backward(one, &all[piece], &scale, &mut grads);
            call.unwrap();
        }
        (pieces.len(), grads.remove(0))
    };
    let (calls, alone) = gradients(1);
    assert_eq!(calls, examples.len());
    for budget in [60, 100, 2048] {
        let (calls, packed) = gradients(budget);
        assert!(calls < examples.len());
        for (x, y) in alone.tensors().zip(packed.tensors()) {
            let largest = x.iter().fold(0.0f32, |most, x| most.max(x.abs()));
            assert!(largest > 0.0);
            for (x, y) in x.iter().zip(y) {
                assert!((x - y).abs() <= 1e-4 * largest, "{x} alone, {y} packed");
            }
        }
    }
}
