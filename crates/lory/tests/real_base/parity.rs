//! Logits and perplexity.

use formats::safetensors::Dtype;
use formats::tokenizer::Special;
use kernels::{BLOCK_TOKENS, Compute, KvType, Span, Tensor};
use model::{Batch, Buffers, Model};

use crate::BASE;

/// The logits after each of `tokens`.
fn logits(model: &Model, tokens: &[u32], compute: Compute, kv: KvType) -> Tensor {
    let blocks: Vec<u32> = (0..tokens.len().div_ceil(BLOCK_TOKENS) as u32).collect();
    let mut cache = model
        .new_cache(model.config().layers, blocks.len(), kv)
        .unwrap();
    let span = Span {
        first: 0,
        rows: tokens.len(),
        past: 0,
        blocks: &blocks,
    };
    let batch = Batch {
        tokens,
        spans: &[span],
        runs: &[],
        adapters: &[],
    };
    let rows: Vec<u32> = (0..tokens.len() as u32).collect();
    let mut logits = Tensor::default();
    let mut buffers = Buffers::default();
    model.forward(batch, &mut cache, &mut buffers, &rows, compute, &mut logits);
    logits
}

#[test]
fn the_float_path_agrees_with_transformers() {
    let bytes = include_bytes!("parity.safetensors");
    let fixture = safetensors::SafeTensors::deserialize(bytes).unwrap();
    let words = |name: &str| -> Vec<u32> {
        let tensor = fixture.tensor(name).unwrap();
        let words = tensor.data().as_chunks::<4>().0.iter();
        words.map(|b| u32::from_le_bytes(*b)).collect()
    };
    let (tokens, columns) = (words("tokens"), words("columns"));
    let want: Vec<f32> = words("logits").into_iter().map(f32::from_bits).collect();
    assert_eq!(want.len(), tokens.len() * columns.len());
    assert_eq!(Dtype::F32.size(), 4);

    let got = logits(&BASE.model, &tokens, Compute::F32, KvType::F32);
    let largest = want.iter().fold(0f32, |m, x| m.max(x.abs()));
    let mut worst = 0f32;
    for (row, want) in want.chunks_exact(columns.len()).enumerate() {
        for (column, want) in columns.iter().zip(want) {
            worst = worst.max((got.row(row)[*column as usize] - want).abs());
        }
    }
    println!("largest logit {largest}, largest difference {worst}");
    assert!(worst < 1e-3 * largest, "{worst} of {largest}");
}

/// exp of the mean loss of predicting each token from those before it.
fn perplexity(logits: &Tensor, tokens: &[u32]) -> f64 {
    let losses = tokens.iter().skip(1).enumerate().map(|(i, next)| {
        let row = logits.row(i);
        let largest = row.iter().copied().fold(f32::MIN, f32::max);
        let sum: f64 = row.iter().map(|l| f64::from(l - largest).exp()).sum();
        sum.ln() - f64::from(row[*next as usize] - largest)
    });
    (losses.sum::<f64>() / (tokens.len() - 1) as f64).exp()
}

#[test]
fn int8_activations_cost_less_than_one_percent_of_perplexity() {
    let text = include_str!("page.txt");
    let tokens = BASE.tokenizer.encode(text, Special::AsText).unwrap();
    assert!(tokens.len() > 400);
    let float = perplexity(
        &logits(&BASE.model, &tokens, Compute::F32, KvType::F32),
        &tokens,
    );
    let int8 = perplexity(
        &logits(&BASE.model, &tokens, Compute::Int8, KvType::F16),
        &tokens,
    );
    println!(
        "{} tokens: perplexity {float:.4} in float, {int8:.4} in int8",
        tokens.len()
    );
    assert!(
        (2.0..100.0).contains(&float),
        "a page of plain English at {float}"
    );
    assert!((int8 / float - 1.0).abs() < 0.01, "{int8} and {float}");
}
