//! How far an adapter moves the base on text that has nothing to do with its tone.
//!
//! Both run side by side in one batch, in the arithmetic that serves. For each token of the text the two distributions of
//! the next token are compared whole: KL(base || adapter) = sum over the vocabulary of p (ln p - ln q), p the base's.

use formats::chat_template::ChatTemplate;
use formats::tokenizer::Tokenizer;
use kernels::{BLOCK_TOKENS, Compute, KvType, LoraType, Run, Span};
use model::{Batch, Buffers, Model, YieldPoint};
use serde::Serialize;

use crate::dataset::{DataRow, RowContent, RowLocation};
use crate::error::TrainError;
use crate::example::{Encoder, Example, LossMask, TooLong};
use crate::learner::LossSum;
use crate::params::LoraParams;
use crate::yield_guard::YieldGuard;

/// The neutral text that ships, one sentence a line.
const NEUTRAL: &str = include_str!("neutral.txt");

/// What an adapter changes on a text.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Drift {
    /// Mean KL divergence of a token's distribution, base to adapter, in nats; 0 where nothing changes.
    pub kl: f64,
    /// Mean loss of a token under the base, in nats.
    pub base_loss: f64,
    /// Mean loss of a token under the adapter, in nats.
    pub loss: f64,
    /// Tokens compared.
    pub tokens: usize,
}

/// The neutral text that ships, as examples in which every token counts.
///
/// # Errors
/// The tokenizer refuses it.
pub fn neutral(
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    context_length: usize,
) -> Result<Vec<Example>, TrainError> {
    let encoder = Encoder {
        tokenizer,
        template,
        system: None,
        mask: LossMask::default(),
        max_length: context_length,
        too_long: TooLong::Drop,
    };
    let lines = NEUTRAL.lines().enumerate();
    let rows: Vec<DataRow> = lines
        .filter(|(_, line)| !line.starts_with('#') && !line.is_empty())
        .map(|(i, line)| DataRow {
            location: RowLocation {
                file: "neutral.txt".into(),
                line: i + 1,
            },
            content: RowContent::Text(line.to_owned()),
            intent: None,
        })
        .collect();
    Ok(encoder.encode_all(&rows)?.examples)
}

/// Compares the base with the base under `adapter` on `examples`, one after the other, yielding before each at `yield_point`.
///
/// # Errors
/// [`TrainError::Stopped`] by the yield point; [`TrainError::Learner`]: the adapter is of another model, an example is longer than the model's context or has a token
/// that it does not know.
pub fn drift(
    model: &Model,
    compute: Compute,
    adapter: &LoraParams,
    examples: &[Example],
    yield_point: Option<&dyn YieldPoint>,
) -> Result<Drift, TrainError> {
    let failed = |message: String| TrainError::Learner(message);
    let packed = model
        .pack_adapter(&adapter.pairs, LoraType::F32)
        .map_err(|error| failed(error.to_string()))?;
    let config = model.config();
    let mut buffers = Buffers::new(model.device());
    let mut logits = model.device().tensor();
    let mut values = Vec::new();
    let (mut base, mut own, mut kl) = (LossSum::default(), LossSum::default(), 0.0);
    for example in examples {
        let known = |&token: &u32| (token as usize) < config.vocab_size;
        if example.tokens.len() > config.context_length || !example.tokens.iter().all(known) {
            return Err(failed(format!(
                "an example of {} tokens does not fit the model's context of {} and vocabulary of {}",
                example.tokens.len(),
                config.context_length,
                config.vocab_size
            )));
        }
        // The last token predicts nothing. The same rows twice: without the adapter, and with it.
        let once = &example.tokens[..example.tokens.len().saturating_sub(1)];
        let rows = once.len();
        if rows == 0 {
            continue;
        }
        let blocks = rows.div_ceil(BLOCK_TOKENS) as u32;
        let pages: Vec<u32> = (0..2 * blocks).collect();
        let (first, second) = pages.split_at(blocks as usize);
        let span = |first: usize, blocks| Span {
            first,
            rows,
            past: 0,
            blocks,
        };
        let run = Run {
            first: rows,
            rows,
            slots: vec![(0, 1.0)],
        };
        let mut cache = model
            .new_cache(config.layers, pages.len(), KvType::F32)
            .map_err(|error| failed(error.to_string()))?;
        let trained: Vec<u32> = (0..rows as u32)
            .filter(|&row| example.loss_mask[row as usize + 1])
            .collect();
        let both: Vec<u32> = trained
            .iter()
            .copied()
            .chain(trained.iter().map(|row| row + rows as u32))
            .collect();
        let batch = Batch {
            tokens: &[once, once].concat(),
            spans: &[span(0, first), span(rows, second)],
            runs: std::slice::from_ref(&run),
            adapters: &[&packed],
            dropout: &[],
        };
        let guard = YieldGuard::new(yield_point, model.device());
        guard.wait()?;
        model.forward(batch, &mut cache, &mut buffers, &both, compute, &mut logits);
        drop(guard);
        logits.read_into(&mut values);
        let row_of = |i: usize| &values[i * config.vocab_size..][..config.vocab_size];
        for (i, &row) in trained.iter().enumerate() {
            let target = example.tokens[row as usize + 1] as usize;
            let p = log_softmax(row_of(i));
            let q = log_softmax(row_of(trained.len() + i));
            kl += p
                .iter()
                .zip(&q)
                .map(|(p, q)| p.exp() * (p - q))
                .sum::<f64>();
            for (sum, logs) in [(&mut base, &p), (&mut own, &q)] {
                sum.add(LossSum {
                    loss: -logs[target],
                    tokens: 1,
                });
            }
        }
    }
    Ok(Drift {
        kl: kl / base.tokens.max(1) as f64,
        base_loss: base.mean(),
        loss: own.mean(),
        tokens: base.tokens,
    })
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let peak = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exps = logits.iter().map(|x| f64::from(x - peak).exp());
    let log_sum = exps.sum::<f64>().ln();
    logits
        .iter()
        .map(|x| f64::from(x - peak) - log_sum)
        .collect()
}
