//! A request's sampling settings and their ranges. The sampling itself is in `sampler`.

use std::hash::{BuildHasher, Hasher};

use crate::error::SubmitError;

/// The most alternatives for which a request may ask for log-probabilities.
pub const MAX_TOP_LOGPROBS: u8 = 20;
/// The most tokens that a request may bias.
pub const MAX_LOGIT_BIAS: usize = 1024;

/// Sampling settings, applied in the order of the fields. A setting at its neutral value costs no time.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the positive and multiplies the negative logits of every token that is in the prompt or the completion
    /// (Keskar et al. 2019, as in Hugging Face transformers). 0.01 to 10; neutral at 1.
    pub repetition_penalty: f32,
    /// Subtracted from a token's logit once for each time that it is in the completion. -2 to 2; neutral at 0.
    pub frequency_penalty: f32,
    /// Subtracted from a token's logit if it is in the completion. -2 to 2; neutral at 0.
    pub presence_penalty: f32,
    /// Added to the logits of these tokens, each at most once in the list; at most [`MAX_LOGIT_BIAS`] of them, each from -100 to
    /// 100. Neutral when empty.
    pub logit_bias: Vec<(u32, f32)>,
    /// Divides the logits. 0 to 2; at 0 the most probable token is taken (of equals the lowest id) and the settings below have
    /// no effect.
    pub temperature: f32,
    /// Keeps the `top_k` most probable tokens; 0 keeps all.
    pub top_k: usize,
    /// Keeps the fewest tokens whose probabilities (after `top_k`) sum to `top_p`. Above 0, to 1; neutral at 1.
    pub top_p: f32,
    /// Keeps tokens at least `min_p` times as probable as the most probable one. 0 to 1; neutral at 0.
    pub min_p: f32,
    /// Equal requests with equal seeds give equal tokens, whatever else is in the batch. `None` picks a random seed.
    pub seed: Option<u64>,
}

impl Default for Sampling {
    /// The model's own distribution: temperature 1, every other setting neutral.
    fn default() -> Self {
        Sampling {
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: Vec::new(),
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            seed: None,
        }
    }
}

impl Sampling {
    /// Always the most probable token.
    pub fn greedy() -> Self {
        Sampling {
            temperature: 0.0,
            ..Sampling::default()
        }
    }

    /// Checks every range.
    ///
    /// # Errors
    /// [`SubmitError::InvalidSampling`], naming the first field out of range (a NaN is out of any range).
    pub fn check(&self) -> Result<(), SubmitError> {
        in_range("repetition_penalty", self.repetition_penalty, 0.01, 10.0)?;
        in_range("frequency_penalty", self.frequency_penalty, -2.0, 2.0)?;
        in_range("presence_penalty", self.presence_penalty, -2.0, 2.0)?;
        if self.logit_bias.len() > MAX_LOGIT_BIAS {
            let tokens = self.logit_bias.len();
            let message = format!("may name at most {MAX_LOGIT_BIAS} tokens, not {tokens}");
            return Err(invalid("logit_bias", message));
        }
        for (_, bias) in &self.logit_bias {
            in_range("logit_bias", *bias, -100.0, 100.0)?;
        }
        in_range("temperature", self.temperature, 0.0, 2.0)?;
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(invalid(
                "top_p",
                format!("must be above 0 and at most 1, not {}", self.top_p),
            ));
        }
        in_range("min_p", self.min_p, 0.0, 1.0)
    }

    pub(crate) fn has_penalties(&self) -> bool {
        self.repetition_penalty != 1.0
            || self.frequency_penalty != 0.0
            || self.presence_penalty != 0.0
    }

    /// The seed, or a random one.
    pub(crate) fn seed_or_random(&self) -> u64 {
        self.seed.unwrap_or_else(|| {
            // The standard library keys every `RandomState` from the system's randomness.
            std::hash::RandomState::new().build_hasher().finish()
        })
    }
}

pub(crate) fn invalid(field: &'static str, message: String) -> SubmitError {
    SubmitError::InvalidSampling { field, message }
}

fn in_range(field: &'static str, value: f32, low: f32, high: f32) -> Result<(), SubmitError> {
    if value >= low && value <= high {
        return Ok(());
    }
    Err(invalid(
        field,
        format!("must be from {low} to {high}, not {value}"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn field_out_of_range_is_rejected_by_name() {
        assert_eq!(Sampling::default().check(), Ok(()));
        assert_eq!(Sampling::greedy().check(), Ok(()));
        type Set = fn(&mut Sampling, f32);
        let fields: [(&str, Set, &[f32]); 7] = [
            (
                "repetition_penalty",
                |s, v| s.repetition_penalty = v,
                &[0.0, -1.0, 10.5],
            ),
            (
                "frequency_penalty",
                |s, v| s.frequency_penalty = v,
                &[-2.1, 2.1],
            ),
            (
                "presence_penalty",
                |s, v| s.presence_penalty = v,
                &[-2.1, 2.1],
            ),
            ("temperature", |s, v| s.temperature = v, &[-0.1, 2.1]),
            ("top_p", |s, v| s.top_p = v, &[0.0, -0.5, 1.1]),
            ("min_p", |s, v| s.min_p = v, &[-0.1, 1.1]),
            (
                "logit_bias",
                |s, v| s.logit_bias = vec![(1, 0.0), (2, v)],
                &[-100.5, 101.0],
            ),
        ];
        for (name, set, wrong) in fields {
            for value in wrong.iter().copied().chain([f32::NAN, f32::INFINITY]) {
                let mut sampling = Sampling::default();
                set(&mut sampling, value);
                let error = sampling.check().unwrap_err();
                assert!(
                    matches!(&error, SubmitError::InvalidSampling { field, .. } if *field == name),
                    "{name} {value}: {error}"
                );
            }
        }
    }

    #[test]
    fn number_of_biases_is_bounded() {
        let with = |tokens: usize| Sampling {
            logit_bias: (0..tokens as u32).map(|id| (id, 1.0)).collect(),
            ..Sampling::default()
        };
        assert_eq!(with(MAX_LOGIT_BIAS).check(), Ok(()));
        let error = with(MAX_LOGIT_BIAS + 1).check().unwrap_err().to_string();
        assert!(
            error.contains("logit_bias") && error.contains("1024"),
            "{error}"
        );
    }

    #[test]
    fn unseeded_requests_get_different_seeds() {
        let sampling = Sampling::default();
        assert_ne!(sampling.seed_or_random(), sampling.seed_or_random());
    }
}
