//! Samples one token from one row of logits. Does not know the batch: the result depends on the row, the settings, the tokens
//! so far, the seed and the position only.

use std::cmp::Ordering;

use rand_xoshiro::SplitMix64;
use rand_xoshiro::rand_core::{Rng as _, SeedableRng as _};

use sampling::Sampling;

use crate::event::Token;
use crate::logits::{Candidates, Row};
use crate::logits_processor::LogitsProcessor;
use crate::softmax::{argmax, exp, largest, log_sum_exp, weights};

/// Why no token can be sampled.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum SampleError {
    /// The row is not a distribution: it holds a NaN or +inf, or only -inf.
    NotADistribution,
    /// The request's constraint allows no token with a logit above -inf.
    NothingAllowed,
}

/// How to sample one token.
pub(crate) struct SampleParams<'a> {
    pub processor: LogitsProcessor<'a>,
    pub seed: u64,
    /// The position of the new token in its sequence.
    pub position: usize,
    /// How many alternatives to report; `None`: no log-probabilities.
    pub top_logprobs: Option<u8>,
}

/// Samples, with the memory that this takes.
#[derive(Default)]
pub(crate) struct Sampler {
    /// The logits after penalties, biases and mask.
    processed: Vec<f32>,
    weights: Vec<f32>,
    /// The candidates: ids with their weights.
    candidates: Vec<(u32, f32)>,
    top_k: TopK,
}

impl Sampler {
    /// Samples from a row: the same token from the whole row and from as many candidates as `Sequence::candidates` says.
    pub fn sample(
        &mut self,
        row: Row<'_>,
        params: &SampleParams<'_>,
    ) -> Result<Token, SampleError> {
        match row {
            Row::Whole(logits) => self.sample_row(logits, params),
            Row::Candidates(row) => self.sample_candidates(row, params),
        }
    }

    fn sample_candidates(
        &mut self,
        row: &Candidates,
        params: &SampleParams<'_>,
    ) -> Result<Token, SampleError> {
        let (id, max) = *row.tokens.first().ok_or(SampleError::NotADistribution)?;
        let sampling = params.processor.sampling;
        let id = if sampling.temperature == 0.0 {
            id
        } else {
            let kept = &row.tokens[..sampling.top_k.min(row.tokens.len())];
            let total = self.keep(kept.iter().copied(), max, sampling);
            self.draw(total, params)
        };
        let logprob = |logit: f32| (f64::from(logit) - row.log_sum) as f32;
        let sampled = row.tokens.iter().find(|token| token.0 == id);
        let logprobs = params.top_logprobs.map(usize::from);
        let top = row.tokens.iter().take(logprobs.unwrap_or(0));
        Ok(Token {
            id,
            logprob: logprobs.and(sampled.map(|token| logprob(token.1))),
            top: top.map(|(id, logit)| (*id, logprob(*logit))).collect(),
        })
    }

    /// Samples from `logits`, one number for each token of the vocabulary.
    fn sample_row(
        &mut self,
        logits: &[f32],
        params: &SampleParams<'_>,
    ) -> Result<Token, SampleError> {
        let max = largest(logits).ok_or(SampleError::NotADistribution)?;
        let id = if params.processor.is_noop() {
            self.pick(logits, max, params)
        } else {
            let mut processed = std::mem::take(&mut self.processed);
            processed.clear();
            processed.extend_from_slice(logits);
            params.processor.apply(&mut processed);
            let id = largest(&processed).map(|max| self.pick(&processed, max, params));
            self.processed = processed;
            id.ok_or(SampleError::NothingAllowed)?
        };
        match params.top_logprobs {
            Some(count) => Ok(self.with_logprobs(logits, max, id, count)),
            None => Ok(Token {
                id,
                logprob: None,
                top: Vec::new(),
            }),
        }
    }

    /// A given token, with its log-probability in `logits` and those of the `count` most probable.
    pub fn score(&mut self, row: Row<'_>, id: u32, count: u8) -> Result<Token, SampleError> {
        // A row whose candidates came instead was not asked for any.
        let Row::Whole(logits) = row else {
            return Err(SampleError::NotADistribution);
        };
        let max = largest(logits).ok_or(SampleError::NotADistribution)?;
        Ok(self.with_logprobs(logits, max, id, count))
    }

    fn with_logprobs(&mut self, logits: &[f32], max: f32, id: u32, count: u8) -> Token {
        let norm = log_sum_exp(logits, max);
        let logprob = |id: u32| (f64::from(logits[id as usize]) - norm) as f32;
        let top = self.top_k.most_probable(logits, usize::from(count));
        Token {
            id,
            logprob: Some(logprob(id)),
            top: top.iter().map(|id| (*id, logprob(*id))).collect(),
        }
    }

    fn pick(&mut self, logits: &[f32], max: f32, params: &SampleParams<'_>) -> u32 {
        let sampling = params.processor.sampling;
        if sampling.temperature == 0.0 {
            return argmax(logits, max);
        }
        let total = if sampling.top_k > 0 && sampling.top_k < logits.len() {
            let mut top_k = std::mem::take(&mut self.top_k);
            let top = top_k.most_probable(logits, sampling.top_k).iter();
            let total = self.keep(top.map(|id| (*id, logits[*id as usize])), max, sampling);
            self.top_k = top_k;
            total
        } else {
            self.keep_all(logits, max, sampling)
        };
        self.draw(total, params)
    }

    /// Draws from the candidates that top_p and min_p leave; `total` is the weight that top_p is a part of.
    fn draw(&mut self, total: f64, params: &SampleParams<'_>) -> u32 {
        let sampling = params.processor.sampling;
        if sampling.top_p < 1.0 {
            let count = top_p(&self.candidates, total * f64::from(sampling.top_p));
            self.candidates.truncate(count);
        }
        if sampling.min_p > 0.0 {
            self.candidates
                .retain(|(_, weight)| *weight >= sampling.min_p);
        }
        draw_from(
            &self.candidates,
            uniform(params.seed, params.position as u64),
        )
    }

    /// Keeps these tokens with their logits, which are in descending order; returns their total weight.
    fn keep(
        &mut self,
        tokens: impl Iterator<Item = (u32, f32)>,
        max: f32,
        sampling: &Sampling,
    ) -> f64 {
        let weight = |logit: f32| exp((logit - max) / sampling.temperature);
        self.candidates.clear();
        self.candidates
            .extend(tokens.map(|(id, logit)| (id, weight(logit))));
        self.candidates
            .iter()
            .map(|(_, weight)| f64::from(*weight))
            .sum()
    }

    /// Keeps the whole vocabulary by id, or, for `top_p`, the tokens that can matter to it, in descending order. Returns the
    /// total weight of the vocabulary for `top_p`; 0 if that is neutral, as nothing else needs the sum.
    fn keep_all(&mut self, logits: &[f32], max: f32, sampling: &Sampling) -> f64 {
        self.candidates.clear();
        weights(logits, max, sampling.temperature, &mut self.weights);
        let every = (0u32..).zip(self.weights.iter().copied());
        if sampling.top_p >= 1.0 {
            self.candidates.extend(every);
            return 0.0;
        }
        // Sorting the vocabulary is slow, so the tokens that min_p cuts and the tail are left out first. Sums by coarse ranges
        // of weight give the lowest range that top_p needs.
        let mut sums = [0.0f64; WEIGHT_RANGES];
        for weight in &self.weights {
            sums[weight_range(*weight)] += f64::from(*weight);
        }
        let total: f64 = sums.iter().sum();
        let mut sum = 0.0;
        let mut lowest = WEIGHT_RANGES - 1;
        loop {
            sum += sums[lowest];
            if lowest == 0 || sum >= total * f64::from(sampling.top_p) {
                break;
            }
            lowest -= 1;
        }
        self.candidates
            .extend(every.filter(|(_, weight)| {
                weight_range(*weight) >= lowest && *weight >= sampling.min_p
            }));
        // By logit, not by weight: unequal logits may round to equal weights.
        self.candidates
            .sort_unstable_by(|a, b| descending(logits, a.0, b.0));
        total
    }
}

/// Ranges of weights (0 to 1) by exponent and two bits of the mantissa.
const WEIGHT_RANGES: usize = 512;

fn weight_range(weight: f32) -> usize {
    // 1.0 is 0x3f80_0000: range 508.
    (weight.to_bits() >> 21) as usize % WEIGHT_RANGES
}

/// How many of the first tokens have a total weight of at least `enough`.
fn top_p(sorted: &[(u32, f32)], enough: f64) -> usize {
    let mut sum = 0.0;
    for (index, (_, weight)) in sorted.iter().enumerate() {
        sum += f64::from(*weight);
        if sum >= enough {
            return index + 1;
        }
    }
    sorted.len()
}

/// Finds the most probable tokens without sorting the vocabulary.
#[derive(Default)]
struct TopK {
    counts: Vec<u32>,
    ids: Vec<u32>,
}

impl TopK {
    /// The `count` most probable tokens, in descending order; of equals the lower id first.
    fn most_probable(&mut self, logits: &[f32], count: usize) -> &[u32] {
        // Counts by coarse ranges of logits give the lowest range that is needed.
        self.counts.clear();
        self.counts.resize(1 << 12, 0);
        for logit in logits {
            self.counts[logit_range(*logit)] += 1;
        }
        let mut lowest = self.counts.len() - 1;
        let mut found = self.counts[lowest] as usize;
        while found < count && lowest > 0 {
            lowest -= 1;
            found += self.counts[lowest] as usize;
        }
        let ids = (0u32..).zip(logits);
        let ids = ids.filter(|(_, logit)| logit_range(**logit) >= lowest);
        self.ids.clear();
        self.ids.extend(ids.map(|(id, _)| id));
        self.ids.sort_unstable_by(|a, b| descending(logits, *a, *b));
        self.ids.truncate(count);
        &self.ids
    }
}

/// The upper 12 bits of a number that rises with the logit; +0 and -0 are equal.
fn logit_range(logit: f32) -> usize {
    let bits = (logit + 0.0).to_bits();
    let rising = if bits >> 31 == 0 {
        bits | 1 << 31
    } else {
        !bits
    };
    (rising >> 20) as usize
}

/// The more probable token first; of equals the lower id.
fn descending(logits: &[f32], a: u32, b: u32) -> Ordering {
    let (la, lb) = (logits[a as usize], logits[b as usize]);
    lb.partial_cmp(&la)
        .unwrap_or(Ordering::Equal)
        .then(a.cmp(&b))
}

/// Samples by inverting the cumulative weights at `at` (0 to 1, 1 excluded).
fn draw_from(candidates: &[(u32, f32)], at: f64) -> u32 {
    let target = at
        * candidates
            .iter()
            .map(|(_, weight)| f64::from(*weight))
            .sum::<f64>();
    let mut sum = 0.0;
    let mut last = 0;
    for (id, weight) in candidates {
        if *weight > 0.0 {
            sum += f64::from(*weight);
            last = *id;
            if sum > target {
                break;
            }
        }
    }
    last
}

/// A number from 0 to 1 (1 excluded), a pure function of seed and position, without state that a preemption could lose or
/// another sequence could advance (counter-based generation, Salmon et al. 2011; the mixing is SplitMix64's).
fn uniform(seed: u64, position: u64) -> f64 {
    let bits = mix(mix(seed) ^ position.wrapping_mul(POSITION_STRIDE));
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

/// 2^64 divided by the golden ratio: spreads neighbouring positions over all bits.
const POSITION_STRIDE: u64 = 0x9e37_79b9_7f4a_7c15;

/// One step of SplitMix64 from `state`.
fn mix(state: u64) -> u64 {
    SplitMix64::seed_from_u64(state).next_u64()
}

#[cfg(test)]
mod tests;
