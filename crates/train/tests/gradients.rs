//! Checks the hand-written backward against finite differences of the loss on a tiny random model, and that training and
//! serving compute the same forward pass.

use std::path::Path;
use std::sync::Arc;

use formats::folder::Folder;
use formats::gguf::{GgmlType, Gguf};
use kernels::{Compute, Device, DeviceChoice, KvType, LoraType, Run, Span};
use model::{Batch, Buffers, Model};
use testkit::{Logits, tiny_adapter, tiny_gguf_as};
use train::{BatchItem, Example, Learner, LoraGrads, LoraParams, ModelLearner};

fn tiny(dtype: GgmlType) -> Arc<Model> {
    let gguf = Gguf::parse(Arc::new(tiny_gguf_as(3, dtype)), "tiny").unwrap();
    Arc::new(
        Model::load(
            &gguf,
            Device::open(DeviceChoice::Cpu { threads: Some(2) }).unwrap(),
        )
        .unwrap(),
    )
}

fn adapter(model: &Model, seed: u64, rank: usize) -> LoraParams {
    LoraParams {
        pairs: tiny_adapter(seed, model.config(), rank, 1.5).pairs,
    }
}

fn example(seed: u32, tokens: usize, prompt: usize) -> Example {
    let tokens: Vec<u32> = (0..tokens as u32)
        .map(|i| (seed * 7919 + i * 104_729) % 250)
        .collect();
    let loss_mask = (0..tokens.len()).map(|i| i >= prompt).collect();
    Example { tokens, loss_mask }
}

fn items(examples: &[(usize, Example)]) -> Vec<BatchItem<'_>> {
    examples
        .iter()
        .map(|(adapter, example)| BatchItem::new(*adapter, example))
        .collect()
}

fn total(
    learner: &mut ModelLearner,
    params: &[LoraParams],
    batch: &[BatchItem<'_>],
    scale: &[f32],
) -> f64 {
    let sums = learner.losses(params, batch).unwrap();
    sums.iter()
        .zip(scale)
        .map(|(s, c)| s.loss * f64::from(*c))
        .sum()
}

/// A tiny model of a family with special layers, from its folder.
fn of_family(family: &str) -> Arc<Model> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../model/tests/fixtures/families")
        .join(family);
    let read = |path: &Path| Ok(Arc::new(std::fs::read(path)?) as formats::gguf::Bytes);
    let folder = Folder::open(&folder, &read).unwrap();
    Arc::new(
        Model::load(
            &folder,
            Device::open(DeviceChoice::Cpu { threads: Some(2) }).unwrap(),
        )
        .unwrap(),
    )
}

#[test]
fn gradients_of_every_adapter_tensor_match_finite_differences() {
    let models = [
        ("F32", tiny(GgmlType::F32)),
        ("Q4_1", tiny(GgmlType::Q4_1)),
        ("biases of q, k and v", of_family("qwen2")),
        ("norms of heads", of_family("qwen3")),
        ("scaled positions", of_family("llama3")),
    ];
    for (kind, model) in models {
        let mut learner = ModelLearner::new(model.clone(), Compute::F32);
        let mut params = vec![adapter(&model, 1, 4), adapter(&model, 2, 8)];
        // Three examples of two adapters, interleaved; one is longer than two blocks.
        let examples = [
            (0, example(1, 20, 8)),
            (1, example(2, 37, 5)),
            (0, example(3, 9, 3)),
        ];
        let batch = items(&examples);
        let scale = [0.05f32, 0.03];
        let mut grads: Vec<LoraGrads> = params.iter().map(LoraGrads::zeros_like).collect();
        learner
            .forward_backward(&params, &batch, &scale, &mut grads)
            .unwrap();

        for a in 0..params.len() {
            for p in 0..params[a].pairs.len() {
                for b in [false, true] {
                    let (layer, module) = (params[a].pairs[p].layer, params[a].pairs[p].module);
                    let grad = if b {
                        &grads[a].pairs[p].b
                    } else {
                        &grads[a].pairs[p].a
                    };
                    // Along the gradient itself: the derivative is its length squared.
                    let length = grad
                        .iter()
                        .map(|g| f64::from(*g).powi(2))
                        .sum::<f64>()
                        .sqrt();
                    let what = format!(
                        "{kind}: adapter {a} layer {layer} {module:?} {}",
                        if b { "B" } else { "A" }
                    );
                    assert!(length > 1e-7, "{what}: no gradient");
                    let grad = grad.clone();
                    let step = 2e-2;
                    let mut moved = |params: &mut Vec<LoraParams>, sign: f64| {
                        let pair = &mut params[a].pairs[p];
                        let values = if b { &mut pair.b } else { &mut pair.a };
                        let before = values.clone();
                        for (v, g) in values.iter_mut().zip(&grad) {
                            *v += (sign * step * f64::from(*g) / length) as f32;
                        }
                        let loss = total(&mut learner, params, &batch, &scale);
                        let pair = &mut params[a].pairs[p];
                        *(if b { &mut pair.b } else { &mut pair.a }) = before;
                        loss
                    };
                    let slope = (moved(&mut params, 1.0) - moved(&mut params, -1.0)) / (2.0 * step);
                    assert!(
                        (slope - length).abs() < 0.02 * length + 2e-5,
                        "{what}: finite difference {slope:.6}, gradient {length:.6}"
                    );
                }
            }
        }
    }
}

#[test]
fn head_norm_backward_is_the_same_cached_or_recomputed() {
    let model = of_family("qwen3");
    let params = vec![adapter(&model, 1, 4)];
    let examples = [(0, example(1, 40, 8))];
    let gradients = |kept: Option<u64>| {
        let mut learner = ModelLearner::new(model.clone(), Compute::F32);
        if let Some(bytes) = kept {
            learner.set_activation_cache(bytes);
        }
        let mut grads = vec![LoraGrads::zeros_like(&params[0])];
        learner
            .forward_backward(&params, &items(&examples), &[1.0], &mut grads)
            .unwrap();
        grads.remove(0)
    };
    let all = gradients(None);
    // The cache holds neither layer, or one of the two.
    for bytes in [0, 60_000] {
        assert_eq!(gradients(Some(bytes)), all, "{bytes}");
    }
}

#[test]
fn two_adapters_in_one_batch_have_the_gradients_that_each_has_alone() {
    let model = tiny(GgmlType::Q8_0);
    let mut learner = ModelLearner::new(model.clone(), Compute::F32);
    let params = vec![adapter(&model, 1, 4), adapter(&model, 2, 4)];
    let examples = [(0, example(1, 20, 8)), (1, example(2, 30, 5))];
    let scale = [1.0, 1.0];
    let zeros = || params.iter().map(LoraGrads::zeros_like).collect::<Vec<_>>();
    let mut both = zeros();
    let sums = learner
        .forward_backward(&params, &items(&examples), &scale, &mut both)
        .unwrap();
    for a in 0..2 {
        let mut alone = zeros();
        let one = learner
            .forward_backward(&params, &items(&examples[a..=a]), &scale, &mut alone)
            .unwrap();
        assert_eq!(one[a], sums[a]);
        assert_eq!(
            alone[a], both[a],
            "adapter {a}: gradients depend on the company"
        );
        assert_eq!(one[1 - a].tokens, 0);
    }
}

#[test]
fn gradients_of_micro_batches_add_up_to_those_of_the_large_batch() {
    let model = tiny(GgmlType::Q4_1);
    let mut learner = ModelLearner::new(model.clone(), Compute::F32);
    let params = vec![adapter(&model, 1, 4)];
    let examples: Vec<(usize, Example)> = [(20, 8), (37, 5), (9, 3), (14, 13)]
        .into_iter()
        .zip(1..)
        .map(|((tokens, prompt), seed)| (0, example(seed, tokens, prompt)))
        .collect();
    let trained: usize = examples.iter().map(|e| e.1.trained_tokens()).sum();
    let scale = [1.0 / trained as f32];
    let mut gradients = |rows: usize| {
        let mut grads = vec![LoraGrads::zeros_like(&params[0])];
        for piece in examples.chunks(rows) {
            learner
                .forward_backward(&params, &items(piece), &scale, &mut grads)
                .unwrap();
        }
        grads.remove(0)
    };
    let whole = gradients(4);
    for rows in [1, 2, 3] {
        for (cut, whole) in gradients(rows).tensors().zip(whole.tensors()) {
            let length =
                |values: &mut dyn Iterator<Item = f32>| values.map(|v| v * v).sum::<f32>().sqrt();
            let apart = length(&mut cut.iter().zip(whole).map(|(c, w)| c - w));
            let size = length(&mut whole.iter().copied());
            assert!(
                apart <= 1e-5 * size,
                "{rows} rows at a time: {apart} of {size}"
            );
        }
    }
}

#[test]
fn rounded_gradients_point_where_f32_ones_do() {
    let model = tiny(GgmlType::Q4_1);
    let params = vec![adapter(&model, 1, 4)];
    let examples = [(0, example(1, 40, 8))];
    let gradients = |compute| {
        let mut grads = vec![LoraGrads::zeros_like(&params[0])];
        ModelLearner::new(model.clone(), compute)
            .forward_backward(&params, &items(&examples), &[1.0], &mut grads)
            .unwrap();
        grads.remove(0)
    };
    let exact = gradients(Compute::F32);
    for (compute, least) in [(Compute::Bits16, 0.999), (Compute::Int8, 0.99)] {
        for (x, y) in exact.tensors().zip(gradients(compute).tensors()) {
            let dot =
                |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(x, y)| f64::from(x * y)).sum::<f64>();
            let cosine = dot(x, y) / (dot(x, x) * dot(y, y)).sqrt();
            assert!(cosine > least, "{compute:?}: cosine {cosine}");
        }
    }
}

#[test]
fn training_and_serving_run_one_forward() {
    // The learner's losses equal those computed from the serving path's logits, row by row.
    let model = tiny(GgmlType::Q4_1);
    let params = vec![adapter(&model, 5, 4)];
    let examples = [(0, example(4, 33, 1))];
    let tokens = &examples[0].1.tokens;
    let rows = tokens.len() - 1;
    let packed = model.pack_adapter(&params[0].pairs, LoraType::F32).unwrap();
    let blocks: Vec<u32> = (0..4).rev().collect();
    let (mut cache, mut buffers, mut logits) = (
        model
            .new_cache(model.config().layers, 4, KvType::F32)
            .unwrap(),
        Buffers::new(model.device()),
        model.device().tensor(),
    );
    let all: Vec<u32> = (0..rows as u32).collect();
    model.forward(
        Batch {
            tokens: &tokens[..rows],
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
    let served: f64 = (0..rows)
        .map(|i| {
            let row = logits.row(i);
            let largest = row.iter().copied().fold(f32::MIN, f32::max);
            let sum: f64 = row.iter().map(|l| f64::from(l - largest).exp()).sum();
            sum.ln() - f64::from(row[tokens[i + 1] as usize] - largest)
        })
        .sum();
    let mut learner = ModelLearner::new(model, Compute::F32);
    let learned = learner.losses(&params, &items(&examples)).unwrap()[0];
    assert_eq!(learned.tokens, rows);
    assert!(
        (learned.loss - served).abs() < 1e-4 * served,
        "{} and {served}",
        learned.loss
    );
}

#[test]
fn examples_that_do_not_fit_the_model_are_rejected() {
    let model = tiny(GgmlType::F32);
    let params = vec![adapter(&model, 1, 4)];
    let mut learner = ModelLearner::new(model.clone(), Compute::F32);
    let long = [(0, example(1, model.config().context_length + 1, 4))];
    assert!(
        learner
            .losses(&params, &items(&long))
            .unwrap_err()
            .to_string()
            .contains("context")
    );
    let mut token = example(1, 8, 4);
    token.tokens[2] = model.config().vocab_size as u32;
    assert!(
        learner
            .losses(&params, &items(&[(0, token)]))
            .unwrap_err()
            .to_string()
            .contains("vocabulary")
    );
}
