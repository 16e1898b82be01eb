//! Measures how far an adapter moves the base on text that is unrelated to its tone.
//!
//! The base and the adapter run in one batch, in the arithmetic of serving. For each token of the text, their full
//! distributions of the next token are compared: KL(base || adapter) = sum over the vocabulary of p (ln p - ln q), with p of the
//! base and q of the adapter.

use std::sync::Arc;

use formats::chat_template::ChatTemplate;
use formats::tokenizer::Tokenizer;
use kernels::{BLOCK_TOKENS, Compute, KvType, LoraType, Run, Span, Tensor};
use model::{Adapter, Batch, Buffers, Model, YieldPoint};
use serde::Serialize;

use crate::error::TrainError;
use crate::example::{Encoder, Example, LossMask, TooLong};
use crate::learner::LossSum;
use crate::params::LoraParams;
use crate::yield_guard::{LayerPace, YieldGuard};
use dataset::{DataRow, RowContent, RowLocation};

/// The built-in neutral text, one sentence a line.
const NEUTRAL: &str = include_str!("neutral.txt");

/// The change that an adapter makes on a text.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Drift {
    /// Mean KL divergence of a token's distribution, base to adapter, in nats; 0 if nothing changes.
    pub kl: f64,
    /// Mean loss of a token under the base, in nats.
    pub base_loss: f64,
    /// Mean loss of a token under the adapter, in nats.
    pub loss: f64,
    /// Tokens compared.
    pub tokens: usize,
}

/// Encodes the built-in neutral text as examples with a loss on every token.
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
        .map(|(i, line)| {
            let location = RowLocation {
                file: "neutral.txt".into(),
                line: i + 1,
            };
            DataRow::new(location, RowContent::Text(line.to_owned()))
        })
        .collect();
    Ok(encoder.encode_all(&rows)?.examples)
}

/// Compares the base with the base under `adapter` on `examples`, one at a time. Waits at `yield_point` before each.
///
/// # Errors
/// [`TrainError::Stopped`] by the yield point. [`TrainError::Learner`] if the adapter is of another model, or an example is
/// longer than the model's context or has a token that is not in its vocabulary.
pub fn drift(
    model: &Model,
    compute: Compute,
    adapter: &LoraParams,
    examples: &[Example],
    yield_point: Option<&Arc<dyn YieldPoint>>,
) -> Result<Drift, TrainError> {
    let adapter = model
        .pack_adapter(&adapter.pairs, LoraType::F32)
        .map_err(|error| TrainError::Learner(error.to_string()))?;
    let vocab_size = model.config().vocab_size;
    let mut buffers = Buffers::new(model.device());
    let mut logits = model.device().tensor();
    let mut values = Vec::new();
    let (mut base, mut own, mut kl) = (LossSum::default(), LossSum::default(), 0.0);
    for example in examples {
        check_fits(model, example)?;
        // The last token predicts nothing.
        let tokens = &example.tokens[..example.tokens.len().saturating_sub(1)];
        if tokens.is_empty() {
            continue;
        }
        let trained: Vec<usize> = (0..tokens.len())
            .filter(|&row| example.loss_mask[row + 1])
            .collect();
        let guard = YieldGuard::new(yield_point, model.device(), LayerPace::default());
        guard.part(true, || {
            forward_both(
                model,
                compute,
                &adapter,
                tokens,
                &trained,
                &mut buffers,
                &mut logits,
            )
        })??;
        drop(guard);
        logits.read_into(&mut values);
        let row_of = |i: usize| &values[i * vocab_size..][..vocab_size];
        for (i, &row) in trained.iter().enumerate() {
            let target = example.tokens[row + 1] as usize;
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

/// Checks that the model can run `example`.
fn check_fits(model: &Model, example: &Example) -> Result<(), TrainError> {
    let config = model.config();
    let known = |&token: &u32| (token as usize) < config.vocab_size;
    if example.tokens.len() <= config.context_length && example.tokens.iter().all(known) {
        return Ok(());
    }
    Err(TrainError::Learner(format!(
        "an example of {} tokens does not fit the model's context of {} and vocabulary of {}",
        example.tokens.len(),
        config.context_length,
        config.vocab_size
    )))
}

/// Runs `tokens` twice in one batch, under the base and under `adapter`, and writes the logits of the `trained` rows: those of
/// the base, then those of the adapter.
fn forward_both(
    model: &Model,
    compute: Compute,
    adapter: &Adapter,
    tokens: &[u32],
    trained: &[usize],
    buffers: &mut Buffers,
    logits: &mut Tensor,
) -> Result<(), TrainError> {
    let rows = tokens.len();
    let blocks = rows.div_ceil(BLOCK_TOKENS) as u32;
    let pages: Vec<u32> = (0..2 * blocks).collect();
    let (base_pages, adapter_pages) = pages.split_at(blocks as usize);
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
        .new_cache(model.config().layers, pages.len(), KvType::F32)
        .map_err(|error| TrainError::Learner(error.to_string()))?;
    let under_adapter = trained.iter().map(|row| row + rows);
    let logit_rows: Vec<u32> = trained
        .iter()
        .copied()
        .chain(under_adapter)
        .map(|row| row as u32)
        .collect();
    let batch = Batch {
        tokens: &[tokens, tokens].concat(),
        spans: &[span(0, base_pages), span(rows, adapter_pages)],
        runs: std::slice::from_ref(&run),
        adapters: &[adapter],
        dropout: &[],
    };
    model.forward(batch, &mut cache, buffers, &logit_rows, compute, logits);
    Ok(())
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
