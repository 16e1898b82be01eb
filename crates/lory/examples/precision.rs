//! What each precision loses on a text: perplexity, and how far the next token's probabilities are from those in f32.
//!
//! ```text
//! cargo run --release --example precision -- BASE TEXT.txt [WORDING]
//! ```
//!
//! BASE is a Hugging Face folder of float weights; WORDING is another base whose tokenizer is taken, where the folder has none.
//! Products run as in serving: float weights in f32, quantized ones against int8 activations. docs/bases.md keeps what it said.

use std::path::Path;

use formats::tokenizer::Special;
use kernels::{BLOCK_TOKENS, Compute, Device, KvType, Span, Tensor};
use lory::service::base::load;
use lory::service::{BaseFiles, Held, Wording};
use model::{Batch, Buffers, Model, Precision};

/// Most tokens of the text that are looked at.
const TOKENS: usize = 1024;

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [base, text, wording @ ..] = args.as_slice() else {
        anyhow::bail!("usage: precision BASE TEXT.txt [WORDING]");
    };
    let wording = Wording::open(Path::new(wording.first().unwrap_or(base)))?;
    let text = std::fs::read_to_string(text)?;
    let mut tokens = wording.tokenizer.encode(&text, Special::AsText)?;
    tokens.truncate(TOKENS.min(wording.context_length));
    println!("{} tokens", tokens.len());
    println!("| precision | weights | perplexity | KL to f32 | same first choice |");
    println!("|---|---|---|---|---|");
    let mut exact: Option<Vec<Vec<f64>>> = None;
    for precision in Precision::ALL {
        let files = BaseFiles::open(Path::new(base))?;
        let held = Held {
            precision: Some(precision),
            kept: None,
        };
        let model = load(Path::new(base), &files, Device::cpu(None)?, &held)?;
        let rows = log_probabilities(&model, &tokens)?;
        let next = |i: usize| rows[i][tokens[i + 1] as usize];
        let n = tokens.len() - 1;
        let perplexity = (-(0..n).map(next).sum::<f64>() / n as f64).exp();
        let exact = exact.get_or_insert_with(|| rows.clone());
        let divergence: f64 = exact
            .iter()
            .zip(&rows)
            .map(|(p, q)| p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>())
            .sum::<f64>()
            / rows.len() as f64;
        let best = |row: &[f64]| (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b]));
        let same = exact
            .iter()
            .zip(&rows)
            .filter(|(p, q)| best(p) == best(q))
            .count();
        println!(
            "| {precision} | {:.1} MB | {perplexity:.4} | {divergence:.6} | {:.1}% |",
            model.weight_bytes() as f64 / 1e6,
            100.0 * same as f64 / rows.len() as f64
        );
    }
    Ok(())
}

/// The log-probabilities of every next token, row by row.
fn log_probabilities(model: &Model, tokens: &[u32]) -> anyhow::Result<Vec<Vec<f64>>> {
    let blocks: Vec<u32> = (0..tokens.len().div_ceil(BLOCK_TOKENS) as u32).collect();
    let mut cache = model.new_cache(model.config().layers, blocks.len(), KvType::F16)?;
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
    model.forward(
        batch,
        &mut cache,
        &mut buffers,
        &rows,
        Compute::Int8,
        &mut logits,
    );
    let row = |i: usize| {
        let row = logits.row(i);
        let largest = row.iter().copied().fold(f32::MIN, f32::max);
        let sum: f64 = row.iter().map(|l| f64::from(l - largest).exp()).sum();
        let norm = f64::from(largest) + sum.ln();
        row.iter().map(|l| f64::from(*l) - norm).collect()
    };
    Ok((0..tokens.len()).map(row).collect())
}
