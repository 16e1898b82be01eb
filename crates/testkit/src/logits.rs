//! Reference logits: one plain forward pass over a text, for comparisons.

use kernels::{BLOCK_TOKENS, Compute, KvType, Run, Span, Tensor};
use model::{Adapter, Batch, Buffers, Model};

/// Logits that were read from a device, a row a token.
pub struct Logits {
    columns: usize,
    values: Vec<f32>,
}

impl Logits {
    /// Reads a tensor of logits.
    pub fn read(logits: &Tensor) -> Logits {
        Logits {
            columns: logits.columns(),
            values: logits.read(),
        }
    }

    /// Tokens in the vocabulary.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The logits of one token.
    pub fn row(&self, i: usize) -> &[f32] {
        &self.values[i * self.columns..][..self.columns]
    }

    /// All logits, row after row.
    pub fn values(&self) -> &[f32] {
        &self.values
    }
}

/// The logits after each of `tokens` (tokens x vocabulary), as one sequence without a past, optionally with an adapter and its scale.
///
/// # Panics
/// There is not enough memory for the keys and values.
pub fn logits(
    model: &Model,
    tokens: &[u32],
    adapter: Option<(&Adapter, f32)>,
    compute: Compute,
    kv: KvType,
) -> Logits {
    let rows = tokens.len();
    let blocks: Vec<u32> = (0..rows.div_ceil(BLOCK_TOKENS) as u32).collect();
    let mut cache = model
        .new_cache(model.config().layers, blocks.len(), kv)
        .expect("memory for keys and values");
    let span = Span {
        first: 0,
        rows,
        past: 0,
        blocks: &blocks,
    };
    let run = |(_, scale)| Run {
        first: 0,
        rows,
        slots: vec![(0, scale)],
    };
    let runs: Vec<Run> = adapter.into_iter().map(run).collect();
    let adapters: Vec<&Adapter> = adapter.into_iter().map(|(adapter, _)| adapter).collect();
    let batch = Batch {
        tokens,
        spans: &[span],
        runs: &runs,
        adapters: &adapters,
        dropout: &[],
    };
    let all: Vec<u32> = (0..rows as u32).collect();
    let mut buffers = Buffers::new(model.device());
    let mut logits = model.device().tensor();
    model.forward(batch, &mut cache, &mut buffers, &all, compute, &mut logits);
    Logits::read(&logits)
}

/// The log-probability of every token for a row of logits.
pub fn log_probabilities(row: &[f32]) -> Vec<f64> {
    let largest = row.iter().copied().fold(f32::MIN, f32::max);
    let sum: f64 = row.iter().map(|l| f64::from(l - largest).exp()).sum();
    let norm = f64::from(largest) + sum.ln();
    row.iter().map(|l| f64::from(*l) - norm).collect()
}

/// exp of the mean loss of predicting each token from those before it; `logits` are those of `tokens`.
pub fn perplexity(logits: &Logits, tokens: &[u32]) -> f64 {
    let next = tokens.iter().skip(1).enumerate();
    let losses = next.map(|(i, next)| -log_probabilities(logits.row(i))[*next as usize]);
    (losses.sum::<f64>() / (tokens.len() - 1) as f64).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_sum_to_one_and_keep_their_order() {
        let row = [3.0f32, -1.0, 800.0, 799.0];
        let logs = log_probabilities(&row);
        assert!((logs.iter().map(|l| l.exp()).sum::<f64>() - 1.0).abs() < 1e-12);
        assert!((logs[2] - logs[3] - 1.0).abs() < 1e-9);
    }
}
