//! Changes a row of logits before sampling: penalties, then biases, then the constraint's mask. The first two skip a token whose
//! logit is -inf.

use std::collections::HashMap;

use sampling::Sampling;

/// How often the sequence holds each token, for penalties. Counted only for requests that have penalties.
pub(crate) struct TokenCounts {
    /// How often the completion holds a token; 0 for one that only the prompt holds.
    counts: Option<HashMap<u32, u32>>,
}

impl TokenCounts {
    pub fn new(sampling: &Sampling, prompt: &[u32]) -> Self {
        let counts =
            has_penalties(sampling).then(|| prompt.iter().map(|token| (*token, 0)).collect());
        TokenCounts { counts }
    }

    /// Counts a token of the completion.
    pub fn push(&mut self, token: u32) {
        if let Some(counts) = &mut self.counts {
            *counts.entry(token).or_insert(0) += 1;
        }
    }
}

fn has_penalties(sampling: &Sampling) -> bool {
    sampling.repetition_penalty != 1.0
        || sampling.frequency_penalty != 0.0
        || sampling.presence_penalty != 0.0
}

/// What to change in a row of logits.
#[derive(Clone, Copy)]
pub(crate) struct LogitsProcessor<'a> {
    pub sampling: &'a Sampling,
    pub token_counts: &'a TokenCounts,
    /// A bit for each token that may be sampled; `None`: all may.
    pub allowed: Option<&'a [u32]>,
}

impl LogitsProcessor<'_> {
    /// Whether it leaves the logits unchanged.
    pub fn is_noop(&self) -> bool {
        self.token_counts.counts.is_none()
            && self.sampling.logit_bias.is_empty()
            && self.allowed.is_none()
    }

    pub fn apply(&self, logits: &mut [f32]) {
        if let Some(counts) = &self.token_counts.counts {
            penalize(logits, counts, self.sampling);
        }
        for (id, bias) in &self.sampling.logit_bias {
            let logit = &mut logits[*id as usize];
            if *logit != f32::NEG_INFINITY {
                *logit = (*logit + bias).clamp(f32::MIN, f32::MAX);
            }
        }
        if let Some(allowed) = self.allowed {
            mask(logits, allowed);
        }
    }
}

/// Sets the logits of tokens whose bit is not set to -inf.
fn mask(logits: &mut [f32], allowed: &[u32]) {
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

fn penalize(logits: &mut [f32], counts: &HashMap<u32, u32>, sampling: &Sampling) {
    for (&id, &times) in counts {
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
        // A very large logit stays finite.
        *logit = logit.clamp(f32::MIN, f32::MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn penalties_apply_to_tokens_of_prompt_and_completion() {
        let sampling = Sampling {
            repetition_penalty: 2.0,
            frequency_penalty: 0.5,
            presence_penalty: 0.25,
            ..Sampling::greedy()
        };
        let mut token_counts = TokenCounts::new(&sampling, &[0, 1]);
        token_counts.push(2);
        token_counts.push(2);
        token_counts.push(1);
        let mut logits = [4.0, -1.0, 4.0, 4.0];
        penalize(
            &mut logits,
            token_counts.counts.as_ref().unwrap(),
            &sampling,
        );
        assert_eq!(logits, [2.0, -2.75, 0.75, 4.0]);
    }
}
