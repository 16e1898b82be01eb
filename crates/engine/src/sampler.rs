//! Draws one token from one row of logits. Knows no batch and no other row: a draw depends on the row, the settings, the
//! tokens so far, the seed and the position, and on nothing else.

use std::cmp::Ordering;
use std::collections::HashMap;

use rand_xoshiro::SplitMix64;
use rand_xoshiro::rand_core::{Rng as _, SeedableRng as _};

use crate::event::Token;
use crate::sampling::Sampling;
use crate::softmax::{argmax, exp, largest, log_sum_exp, weights};

/// Why there is nothing to draw from.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum DrawError {
    /// The row is no distribution: it holds a NaN or +inf, or nothing above -inf.
    NotADistribution,
    /// The request's constraint allows no token that the model could say.
    NothingAllowed,
}

/// The tokens that penalties look at. Kept only for requests that have penalties.
pub(crate) struct History {
    /// How often the completion holds a token; 0 for one that only the prompt holds.
    seen: Option<HashMap<u32, u32>>,
}

impl History {
    pub fn new(sampling: &Sampling, prompt: &[u32]) -> Self {
        let seen = sampling
            .has_penalties()
            .then(|| prompt.iter().map(|token| (*token, 0)).collect());
        History { seen }
    }

    pub fn push(&mut self, token: u32) {
        if let Some(seen) = &mut self.seen {
            *seen.entry(token).or_insert(0) += 1;
        }
    }
}

/// Where and how to draw.
pub(crate) struct Draw<'a> {
    pub sampling: &'a Sampling,
    pub seed: u64,
    /// The position that the new token takes in its sequence.
    pub position: usize,
    pub history: &'a History,
    /// A bit for each token that may be drawn; `None`: all may.
    pub allowed: Option<&'a [u32]>,
    /// How many alternatives to report; `None`: no log-probabilities at all.
    pub top_logprobs: Option<u8>,
}

impl Draw<'_> {
    fn changes_logits(&self) -> bool {
        self.history.seen.is_some()
            || !self.sampling.logit_bias.is_empty()
            || self.allowed.is_some()
    }

    fn change(&self, logits: &mut [f32]) {
        if let Some(seen) = &self.history.seen {
            penalise(logits, seen, self.sampling);
        }
        for (id, bias) in &self.sampling.logit_bias {
            let logit = &mut logits[*id as usize];
            if *logit != f32::NEG_INFINITY {
                *logit = (*logit + bias).clamp(f32::MIN, f32::MAX);
            }
        }
        if let Some(allowed) = self.allowed {
            forbid(logits, allowed);
        }
    }
}

/// The draw, with its working memory.
#[derive(Default)]
pub(crate) struct Sampler {
    /// The logits after penalties, biases and constraint.
    changed: Vec<f32>,
    weights: Vec<f32>,
    /// What is left to draw from: ids with their weights.
    kept: Vec<(u32, f32)>,
    ranks: Ranks,
}

impl Sampler {
    /// Draws from `logits`, one number for each token of the vocabulary.
    pub fn draw(&mut self, logits: &[f32], draw: &Draw<'_>) -> Result<Token, DrawError> {
        let max = largest(logits).ok_or(DrawError::NotADistribution)?;
        let id = if draw.changes_logits() {
            let mut changed = std::mem::take(&mut self.changed);
            changed.clear();
            changed.extend_from_slice(logits);
            draw.change(&mut changed);
            let id = largest(&changed).map(|max| self.pick(&changed, max, draw));
            self.changed = changed;
            id.ok_or(DrawError::NothingAllowed)?
        } else {
            self.pick(logits, max, draw)
        };
        match draw.top_logprobs {
            Some(count) => Ok(self.describe(logits, max, id, count)),
            None => Ok(Token {
                id,
                logprob: None,
                top: Vec::new(),
            }),
        }
    }

    /// A token that stands already, with its log-probability in `logits` and those of the `count` most probable.
    pub fn judge(&mut self, logits: &[f32], id: u32, count: u8) -> Result<Token, DrawError> {
        let max = largest(logits).ok_or(DrawError::NotADistribution)?;
        Ok(self.describe(logits, max, id, count))
    }

    fn describe(&mut self, logits: &[f32], max: f32, id: u32, count: u8) -> Token {
        let norm = log_sum_exp(logits, max);
        let logprob = |id: u32| (f64::from(logits[id as usize]) - norm) as f32;
        let top = self.ranks.most_probable(logits, usize::from(count));
        Token {
            id,
            logprob: Some(logprob(id)),
            top: top.iter().map(|id| (*id, logprob(*id))).collect(),
        }
    }

    fn pick(&mut self, logits: &[f32], max: f32, draw: &Draw<'_>) -> u32 {
        let sampling = draw.sampling;
        if sampling.temperature == 0.0 {
            return argmax(logits, max);
        }
        self.kept.clear();
        let total = if sampling.top_k > 0 && sampling.top_k < logits.len() {
            self.keep_top_k(logits, max, sampling)
        } else {
            self.keep_all(logits, max, sampling)
        };
        if sampling.top_p < 1.0 {
            let kept = top_p(&self.kept, total * f64::from(sampling.top_p));
            self.kept.truncate(kept);
        }
        if sampling.min_p > 0.0 {
            self.kept.retain(|(_, weight)| *weight >= sampling.min_p);
        }
        draw_from(&self.kept, uniform(draw.seed, draw.position as u64))
    }

    /// Keeps the `top_k` most probable tokens, falling; returns their total weight.
    fn keep_top_k(&mut self, logits: &[f32], max: f32, sampling: &Sampling) -> f64 {
        let weight = |id: u32| exp((logits[id as usize] - max) / sampling.temperature);
        let top = self.ranks.most_probable(logits, sampling.top_k);
        self.kept.extend(top.iter().map(|id| (*id, weight(*id))));
        self.kept.iter().map(|(_, weight)| f64::from(*weight)).sum()
    }

    /// Keeps the whole vocabulary by id, or, for `top_p`, the tokens that can matter to it, falling; returns the total
    /// weight of the vocabulary.
    fn keep_all(&mut self, logits: &[f32], max: f32, sampling: &Sampling) -> f64 {
        weights(logits, max, sampling.temperature, &mut self.weights);
        let every = (0u32..).zip(self.weights.iter().copied());
        if sampling.top_p >= 1.0 {
            self.kept.extend(every);
            return 0.0;
        }
        // Sorting the vocabulary is slow, so what cannot stay goes first: what min_p cuts, and the tail. Sums by coarse
        // ranges of weight tell below which weight nothing is needed.
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
        self.kept
            .extend(every.filter(|(_, weight)| {
                weight_range(*weight) >= lowest && *weight >= sampling.min_p
            }));
        // By logit, not by weight: unequal logits may round to equal weights.
        self.kept.sort_unstable_by(|a, b| falling(logits, a.0, b.0));
        total
    }
}

/// Ranges of weights (0 to 1) by exponent and two bits of the mantissa.
const WEIGHT_RANGES: usize = 512;

fn weight_range(weight: f32) -> usize {
    // 1.0 is 0x3f80_0000: range 508.
    (weight.to_bits() >> 21) as usize % WEIGHT_RANGES
}

/// How many tokens from the front it takes to sum to `enough`.
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
struct Ranks {
    counts: Vec<u32>,
    ids: Vec<u32>,
}

impl Ranks {
    /// The `count` most probable tokens, falling, the lower id first of equals.
    fn most_probable(&mut self, logits: &[f32], count: usize) -> &[u32] {
        // Counts by coarse ranges of logits tell below which logit nothing is needed.
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
        self.ids.sort_unstable_by(|a, b| falling(logits, *a, *b));
        self.ids.truncate(count);
        &self.ids
    }
}

/// The upper 12 bits of a number that rises with the logit; +0 and -0 are one.
fn logit_range(logit: f32) -> usize {
    let bits = (logit + 0.0).to_bits();
    let rising = if bits >> 31 == 0 {
        bits | 1 << 31
    } else {
        !bits
    };
    (rising >> 20) as usize
}

/// The more probable token first, the lower id of equals.
fn falling(logits: &[f32], a: u32, b: u32) -> Ordering {
    let (la, lb) = (logits[a as usize], logits[b as usize]);
    lb.partial_cmp(&la)
        .unwrap_or(Ordering::Equal)
        .then(a.cmp(&b))
}

/// Draws by inverting the cumulated weights at `at` (0 to 1, 1 excluded).
fn draw_from(kept: &[(u32, f32)], at: f64) -> u32 {
    let target = at
        * kept
            .iter()
            .map(|(_, weight)| f64::from(*weight))
            .sum::<f64>();
    let mut sum = 0.0;
    let mut last = 0;
    for (id, weight) in kept {
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

/// Leaves only the tokens whose bits are set.
fn forbid(logits: &mut [f32], allowed: &[u32]) {
    for (logits, word) in logits.chunks_mut(32).zip(allowed) {
        if *word == u32::MAX {
            continue;
        }
        for (bit, logit) in logits.iter_mut().enumerate() {
            if word >> bit & 1 == 0 {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
}

fn penalise(logits: &mut [f32], seen: &HashMap<u32, u32>, sampling: &Sampling) {
    for (&id, &times) in seen {
        let logit = &mut logits[id as usize];
        if *logit == f32::NEG_INFINITY {
            continue;
        }
        if *logit > 0.0 {
            *logit /= sampling.repetition_penalty;
        } else {
            *logit *= sampling.repetition_penalty;
        }
        *logit -= sampling.frequency_penalty * times as f32;
        if times > 0 {
            *logit -= sampling.presence_penalty;
        }
        // However large the logit was, it stays a number.
        *logit = logit.clamp(f32::MIN, f32::MAX);
    }
}

/// A number from 0 to 1 (1 excluded), a pure function of seed and position: no state that a preemption could lose or a
/// neighbour could advance (counter-based generation, Salmon et al. 2011; the mixing is SplitMix64's).
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
mod tests {
    use super::*;

    /// Published answers are reproducible by their seed, so these bits may never change.
    #[test]
    fn random_numbers_are_stable() {
        assert_eq!(
            [0, 1, 7, u64::MAX].map(mix),
            [
                0xe220_a839_7b1d_cdaf,
                0x910a_2dec_8902_5cc1,
                0x63cb_e1e4_5932_0dd7,
                0xe4d9_7177_1b65_2c20,
            ]
        );
        let bits = |seed, position| (uniform(seed, position) * (1u64 << 53) as f64) as u64;
        assert_eq!(
            [bits(0, 0), bits(7, 0), bits(7, 1), bits(u64::MAX, 4095)],
            [
                0x14_e0db_a5e9_a32f,
                0x17_1698_52ef_d579,
                0x0d_cf9c_094c_758f,
                0x1e_5c8e_3721_3f29,
            ]
        );
    }

    fn plain(sampling: &Sampling, seed: u64, position: usize, logits: &[f32]) -> u32 {
        let history = History::new(&Sampling::greedy(), &[]);
        let draw = Draw {
            sampling,
            seed,
            position,
            history: &history,
            allowed: None,
            top_logprobs: None,
        };
        Sampler::default().draw(logits, &draw).unwrap().id
    }

    /// The slow, obvious draw: sort everything, cut one rule after the other.
    fn reference(sampling: &Sampling, seed: u64, position: usize, logits: &[f32]) -> u32 {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weights: Vec<f32> = logits
            .iter()
            .map(|l| exp((l - max) / sampling.temperature))
            .collect();
        let mut ids: Vec<usize> = (0..logits.len()).collect();
        ids.sort_by(|a, b| logits[*b].partial_cmp(&logits[*a]).unwrap().then(a.cmp(b)));
        if sampling.top_k > 0 {
            ids.truncate(sampling.top_k);
        }
        let total: f64 = ids.iter().map(|id| f64::from(weights[*id])).sum();
        let mut kept = Vec::new();
        let mut sum = 0.0;
        for id in ids {
            // 1e-9: the fast sum runs in another order.
            if sum >= total * f64::from(sampling.top_p) - 1e-9 && sampling.top_p < 1.0 {
                break;
            }
            sum += f64::from(weights[id]);
            if weights[id] >= sampling.min_p {
                kept.push(id);
            }
        }
        if sampling.top_p >= 1.0 && !(1..logits.len()).contains(&sampling.top_k) {
            kept.sort_unstable();
        }
        let target = uniform(seed, position as u64)
            * kept.iter().map(|id| f64::from(weights[*id])).sum::<f64>();
        let mut sum = 0.0;
        for id in &kept {
            sum += f64::from(weights[*id]);
            if sum > target {
                return *id as u32;
            }
        }
        *kept.last().unwrap() as u32
    }

    fn random_logits(seed: u64, vocab: usize) -> Vec<f32> {
        (0..vocab as u64)
            .map(|i| (uniform(seed, i) * 12.0 - 6.0) as f32)
            .collect()
    }

    #[test]
    fn every_mix_of_settings_draws_as_the_reference_does() {
        for round in 0..3000u64 {
            let pick = |n: u64, of: u64| mix(round * 31 + n) % of;
            let sampling = Sampling {
                temperature: [0.3, 0.7, 1.0, 2.0][pick(1, 4) as usize],
                top_k: [0, 1, 5, 50, 5000][pick(2, 5) as usize],
                top_p: [1.0, 0.9, 0.5, 0.99, 0.01][pick(3, 5) as usize],
                min_p: [0.0, 0.05, 0.5, 1.0][pick(4, 4) as usize],
                ..Sampling::default()
            };
            let mut logits = random_logits(round, 1 + pick(5, 700) as usize);
            if pick(6, 3) == 0 {
                logits.iter_mut().for_each(|l| *l = l.round());
            }
            let expected = reference(&sampling, round, 7, &logits);
            assert_eq!(
                plain(&sampling, round, 7, &logits),
                expected,
                "{sampling:?}"
            );
        }
    }

    #[test]
    fn greedy_takes_the_lowest_id_of_equals() {
        let logits = [1.0, f32::NEG_INFINITY, 3.0, -0.5, 3.0];
        assert_eq!(plain(&Sampling::greedy(), 1, 1, &logits), 2);
        assert_eq!(plain(&Sampling::greedy(), 1, 1, &[-0.0, 0.0]), 0);
    }

    #[test]
    fn draws_follow_the_distribution_and_depend_on_seed_and_position_alone() {
        let logits = [0.5f32.ln(), 0.3f32.ln(), 0.2f32.ln(), f32::NEG_INFINITY];
        let mut counts = [0; 4];
        for position in 0..20_000 {
            let id = plain(&Sampling::default(), 42, position, &logits);
            assert_eq!(id, plain(&Sampling::default(), 42, position, &logits));
            counts[id as usize] += 1;
        }
        for (count, expected) in counts.iter().zip([10_000, 6_000, 4_000, 0i32]) {
            assert!((count - expected).abs() < 300, "{counts:?}");
        }
    }

    #[test]
    fn penalties_weigh_what_was_seen() {
        let sampling = Sampling {
            repetition_penalty: 2.0,
            frequency_penalty: 0.5,
            presence_penalty: 0.25,
            ..Sampling::greedy()
        };
        let mut history = History::new(&sampling, &[0, 1]);
        history.push(2);
        history.push(2);
        history.push(1);
        let mut logits = [4.0, -1.0, 4.0, 4.0];
        penalise(&mut logits, history.seen.as_ref().unwrap(), &sampling);
        assert_eq!(logits, [2.0, -2.75, 0.75, 4.0]);
    }

    #[test]
    fn a_mask_and_biases_decide_what_is_drawn_and_no_log_probability() {
        for round in 0..500u64 {
            let pick = |n: u64, of: u64| mix(round * 17 + n) % of;
            let vocab = 1 + pick(1, 200) as usize;
            let logits = random_logits(round, vocab);
            let mut allowed = vec![0u32; crate::constraint::mask_words(vocab)];
            for id in 0..vocab {
                if pick(10 + id as u64, 3) == 0 {
                    allowed[id / 32] |= 1 << (id % 32);
                }
            }
            let biased = pick(2, vocab as u64) as usize;
            let sampling = Sampling {
                temperature: [0.0, 0.8, 1.5][pick(3, 3) as usize],
                top_k: [0, 3][pick(4, 2) as usize],
                top_p: [1.0, 0.7][pick(5, 2) as usize],
                logit_bias: vec![(biased as u32, [-100.0, 2.5, 100.0][pick(6, 3) as usize])],
                ..Sampling::default()
            };
            // The slow way: change the logits one by one, and draw from those as they are.
            let mut changed = logits.clone();
            changed[biased] += sampling.logit_bias[0].1;
            for (id, logit) in changed.iter_mut().enumerate() {
                if allowed[id / 32] >> (id % 32) & 1 == 0 {
                    *logit = f32::NEG_INFINITY;
                }
            }
            let history = History::new(&sampling, &[]);
            let draw = Draw {
                sampling: &sampling,
                seed: round,
                position: 3,
                history: &history,
                allowed: Some(&allowed),
                top_logprobs: Some(2),
            };
            let drawn = Sampler::default().draw(&logits, &draw);
            if changed.iter().all(|logit| *logit == f32::NEG_INFINITY) {
                assert_eq!(drawn, Err(DrawError::NothingAllowed));
                continue;
            }
            let token = drawn.unwrap();
            let unbiased = Sampling {
                logit_bias: Vec::new(),
                ..sampling.clone()
            };
            assert_eq!(token.id, plain(&unbiased, round, 3, &changed));
            let norm: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum::<f64>().ln();
            let expected = f64::from(logits[token.id as usize]) - norm;
            assert!((f64::from(token.logprob.unwrap()) - expected).abs() < 1e-5);
        }
    }

    #[test]
    fn log_probabilities_are_the_models_own_and_sorted() {
        let sampling = Sampling {
            repetition_penalty: 10.0,
            ..Sampling::greedy()
        };
        let history = History::new(&sampling, &[1]);
        let draw = Draw {
            sampling: &sampling,
            seed: 0,
            position: 0,
            history: &history,
            allowed: None,
            top_logprobs: Some(3),
        };
        let logits = [0.25f32.ln(), 0.5f32.ln(), 0.125f32.ln(), 0.125f32.ln()];
        // The penalty divides positive logits and multiplies negative ones: token 1 falls behind token 0.
        let token = Sampler::default().draw(&logits, &draw).unwrap();
        assert_eq!(token.id, 0);
        assert!((token.logprob.unwrap() - 0.25f32.ln()).abs() < 1e-6);
        let ids: Vec<u32> = token.top.iter().map(|(id, _)| *id).collect();
        assert_eq!(ids, [1, 0, 2]);
        assert!((token.top[0].1 - 0.5f32.ln()).abs() < 1e-6);
    }

    #[test]
    fn what_is_no_distribution_is_refused_and_extremes_are_not() {
        let history = History::new(&Sampling::default(), &[]);
        let sampling = Sampling {
            temperature: 1e-30,
            top_p: 1e-30,
            min_p: 1e-30,
            ..Sampling::default()
        };
        let draw = Draw {
            sampling: &sampling,
            seed: 3,
            position: 9,
            history: &history,
            allowed: None,
            top_logprobs: Some(20),
        };
        for wrong in [
            [f32::NAN, 0.0],
            [0.0, f32::INFINITY],
            [f32::NEG_INFINITY; 2],
        ] {
            assert_eq!(
                Sampler::default().draw(&wrong, &draw),
                Err(DrawError::NotADistribution)
            );
        }
        let token = Sampler::default().draw(&[-3e38, 3e38], &draw).unwrap();
        assert_eq!((token.id, token.top.len()), (1, 2));
    }
}
