//! Logits and perplexity.

use formats::safetensors::Dtype;
use formats::tokenizer::Special;
use kernels::{Compute, KvType};
use testkit::{logits, perplexity};

use crate::BASE;

#[test]
fn float_logits_match_transformers() {
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

    let got = logits(&BASE.model, &tokens, None, Compute::F32, KvType::F32);
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

#[test]
fn int8_activations_cost_less_than_one_percent_of_perplexity() {
    let text = include_str!("page.txt");
    let tokens = BASE.tokenizer.encode(text, Special::AsText).unwrap();
    assert!(tokens.len() > 400);
    let float = perplexity(
        &logits(&BASE.model, &tokens, None, Compute::F32, KvType::F32),
        &tokens,
    );
    let int8 = perplexity(
        &logits(&BASE.model, &tokens, None, Compute::Int8, KvType::F16),
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
