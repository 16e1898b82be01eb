//! The sampling parameters: one table of their names, types, ranges, neutral values and interfaces. Must not know how tokens
//! are sampled.
//!
//! Every interface reads its parameters from [`PARAMETERS`]: the HTTP API, `persona.toml` with the published settings, and the
//! command line. They meet in [`SamplingParams`], where every parameter is optional; [`SamplingParams::resolve`] gives the
//! engine its [`Sampling`]. To add a parameter, add a row below and read its field in the engine's sampler.

#[macro_use]
mod table;
mod read;

pub use table::{CommandLineFlag, Interface, Kind, Parameter, Range, SamplingError, Value};

use Interface::{Generate, OpenAi, Persona};

/// The most tokens that a request may bias.
pub const MAX_LOGIT_BIAS: usize = 1024;
/// The range of a bias.
const LOGIT_BIAS: Range = Range::closed(-100.0, 100.0);

// One row for each parameter: its doc, its name, its kind with the range, its neutral value, the interfaces that accept it (the
// OpenAI endpoints accept all), its flag of `lory generate`, and the help text of the API. Published settings are written in this
// order, so a new row comes last.
parameters! {
    /// Divides the logits. 0 to 2; at 0 the most probable token is taken (of equals the lowest id), and `top_k`, `top_p` and
    /// `min_p` have no effect.
    temperature: Float(Range::closed(0.0, 2.0)) = 1.0, [OpenAi, Generate, Persona],
        flag("temperature", "T", "0 always takes the most probable token [default: the persona's]"),
        "0 to 2; 0 always takes the most probable token.";
    /// Keeps the fewest tokens whose probabilities (after `top_k`) sum to `top_p`. Above 0, to 1; neutral at 1.
    top_p: Float(Range::above(0.0, 1.0)) = 1.0, [OpenAi, Generate, Persona], no_flag(), "Above 0, to 1.";
    /// Keeps the `top_k` most probable tokens; 0 keeps all.
    top_k: Count() = 0, [OpenAi, Generate, Persona], no_flag(), "0 for all.";
    /// Keeps tokens at least `min_p` times as probable as the most probable one. 0 to 1; neutral at 0.
    min_p: Float(Range::closed(0.0, 1.0)) = 0.0, [OpenAi, Persona], no_flag(), "0 to 1.";
    /// Divides the positive and multiplies the negative logits of every token that is in the prompt or the completion
    /// (Keskar et al. 2019, as in Hugging Face transformers). 0.01 to 10; neutral at 1.
    repetition_penalty: Float(Range::closed(0.01, 10.0)) = 1.0, [OpenAi, Persona], no_flag(), "0.01 to 10; 1 is neutral.";
    /// Subtracted from a token's logit once for each time that it is in the completion. -2 to 2; neutral at 0.
    frequency_penalty: Float(Range::closed(-2.0, 2.0)) = 0.0, [OpenAi], no_flag(), "-2 to 2; 0 is neutral.";
    /// Subtracted from a token's logit if it is in the completion. -2 to 2; neutral at 0.
    presence_penalty: Float(Range::closed(-2.0, 2.0)) = 0.0, [OpenAi], no_flag(), "-2 to 2; 0 is neutral.";
    /// Equal requests with equal seeds give equal tokens, whatever else is in the batch. `None` picks a random seed.
    seed: Seed() = None, [OpenAi, Generate, Persona], flag("seed", "N", "Makes the answer repeatable"),
        "Makes equal requests give equal answers.";
}

impl Sampling {
    /// Always the most probable token.
    #[must_use]
    pub fn greedy() -> Self {
        Sampling {
            temperature: 0.0,
            ..Sampling::default()
        }
    }

    /// Checks every range.
    ///
    /// # Errors
    /// [`SamplingError`], naming the first parameter out of range (a NaN is out of any range).
    pub fn check(&self) -> Result<(), SamplingError> {
        self.params().check()?;
        if self.logit_bias.len() > MAX_LOGIT_BIAS {
            let tokens = self.logit_bias.len();
            let message = format!("may name at most {MAX_LOGIT_BIAS} tokens, not {tokens}");
            return Err(SamplingError::new("logit_bias", message));
        }
        for (_, bias) in &self.logit_bias {
            LOGIT_BIAS.check("logit_bias", *bias)?;
        }
        Ok(())
    }
}

impl SamplingParams {
    /// Whether no parameter is set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == SamplingParams::default()
    }

    /// Checks every parameter that is set.
    ///
    /// # Errors
    /// [`SamplingError`], naming the first parameter out of range.
    pub fn check(&self) -> Result<(), SamplingError> {
        for (parameter, value) in self.iter() {
            if let (Kind::Float(range), Value::Float(value)) = (parameter.kind, value) {
                range.check(parameter.name, value)?;
            }
        }
        Ok(())
    }

    /// The parameters that are set, in the table's order.
    pub fn iter(&self) -> impl Iterator<Item = (&'static Parameter, Value)> + '_ {
        let values = PARAMETERS.iter().zip(self.values());
        values.filter_map(|(parameter, value)| Some((parameter, value?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_parameter_out_of_range_is_rejected_by_name() {
        assert_eq!(Sampling::default().check(), Ok(()));
        assert_eq!(Sampling::greedy().check(), Ok(()));
        for (name, wrong) in [
            ("repetition_penalty", [0.0, 10.5]),
            ("frequency_penalty", [-2.1, 2.1]),
            ("presence_penalty", [-2.1, 2.1]),
            ("temperature", [-0.1, 2.1]),
            ("top_p", [0.0, 1.1]),
            ("min_p", [-0.1, 1.1]),
        ] {
            for value in wrong.into_iter().chain([f32::NAN, f32::INFINITY]) {
                let mut params = SamplingParams::default();
                params.set(name, Value::Float(value));
                assert_eq!(params.check().unwrap_err().parameter, name);
                let error = params.resolve().check().unwrap_err();
                assert_eq!(error.parameter, name, "{value}: {error}");
            }
        }
        for value in [-100.5, 101.0, f32::NAN] {
            let sampling = Sampling {
                logit_bias: vec![(1, 0.0), (2, value)],
                ..Sampling::default()
            };
            assert_eq!(sampling.check().unwrap_err().parameter, "logit_bias");
        }
    }

    #[test]
    fn errors_state_the_range() {
        let message = |name: &str, value: f32| {
            let mut params = SamplingParams::default();
            params.set(name, Value::Float(value));
            params.check().unwrap_err().to_string()
        };
        assert_eq!(
            message("temperature", 9.0),
            "temperature must be from 0 to 2, not 9"
        );
        assert_eq!(
            message("top_p", 0.0),
            "top_p must be above 0 and at most 1, not 0"
        );
    }

    #[test]
    fn logit_biases_are_bounded_in_number() {
        let with = |tokens: usize| Sampling {
            logit_bias: (0..tokens as u32).map(|id| (id, 1.0)).collect(),
            ..Sampling::default()
        };
        assert_eq!(with(MAX_LOGIT_BIAS).check(), Ok(()));
        let error = with(MAX_LOGIT_BIAS + 1).check().unwrap_err().to_string();
        assert_eq!(error, "logit_bias may name at most 1024 tokens, not 1025");
    }

    #[test]
    fn set_parameters_override_the_fallback_and_the_neutral_values() {
        let request = SamplingParams {
            temperature: Some(0.5),
            seed: Some(3),
            ..SamplingParams::default()
        };
        let persona = SamplingParams {
            temperature: Some(1.5),
            top_k: Some(4),
            ..SamplingParams::default()
        };
        let sampling = request.or(persona).resolve();
        assert_eq!((sampling.temperature, sampling.top_k), (0.5, 4));
        assert_eq!((sampling.top_p, sampling.seed), (1.0, Some(3)));
        assert_eq!(SamplingParams::default().resolve(), Sampling::default());
    }

    #[test]
    fn parameters_are_set_and_listed_by_name_and_kind() {
        for parameter in &PARAMETERS {
            let mut params = SamplingParams::default();
            assert!(params.is_empty());
            let value = match parameter.kind {
                Kind::Float(_) => Value::Float(0.5),
                Kind::Count => Value::Count(5),
                Kind::Seed => Value::Seed(7),
            };
            assert!(params.set(parameter.name, value));
            let set: Vec<_> = params
                .iter()
                .map(|(set, value)| (set.name, value))
                .collect();
            assert_eq!(set, [(parameter.name, value)]);
        }
        let mut params = SamplingParams::default();
        assert!(!params.set("temperature", Value::Count(1)));
        assert!(!params.set("warmth", Value::Float(1.0)));
        assert!(params.is_empty());
    }

    #[test]
    fn objects_are_read_by_the_parameters_of_the_interface() {
        let read = |interface, json: &str| {
            let mut reader = serde_json::Deserializer::from_str(json);
            SamplingParams::read(interface, &mut reader).map_err(|error| error.to_string())
        };
        let params = read(Persona, r#"{"temperature": 0, "top_k": 4, "seed": null}"#).unwrap();
        assert_eq!((params.temperature, params.top_k), (Some(0.0), Some(4)));
        assert_eq!(params.seed, None);
        let params = read(OpenAi, r#"{"seed": -1}"#).unwrap();
        assert_eq!(params.seed, Some(u64::MAX));
        for (interface, json, message) in [
            (
                Persona,
                r#"{"presence_penalty": 1}"#,
                "unknown field `presence_penalty`, expected one of `temperature`",
            ),
            (Persona, r#"{"seed": -1}"#, "expected u64"),
            (
                OpenAi,
                r#"{"top_k": 1.5}"#,
                "expected a whole number from 0, or -1 for no limit",
            ),
            (
                OpenAi,
                r#"{"top_p": 1, "top_p": 1}"#,
                "duplicate field `top_p`",
            ),
            (OpenAi, "[]", "expected a map of sampling parameters"),
        ] {
            let error = read(interface, json).unwrap_err();
            assert!(error.contains(message), "{error}");
        }
    }
}
