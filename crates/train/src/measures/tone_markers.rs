//! Tone markers: regular expressions that an answer in the right tone matches, and others that it does not.

use formats::bounded_regex;
use regex::RegexSet;

use crate::error::TrainError;

/// Regular expressions that detect the tone of an answer.
#[derive(Debug, Clone)]
pub struct ToneMarkers {
    /// The answer must match at least one of these, where there are any.
    any_of: RegexSet,
    /// The answer must match none of these.
    none_of: RegexSet,
}

impl Default for ToneMarkers {
    fn default() -> Self {
        Self {
            any_of: RegexSet::empty(),
            none_of: RegexSet::empty(),
        }
    }
}

impl ToneMarkers {
    /// Markers from patterns of the `regex` crate's syntax.
    ///
    /// # Errors
    /// A pattern does not parse, or the patterns of a list compile to more than [`bounded_regex::MAX_PROGRAM`] bytes together.
    pub fn new(any_of: &[String], none_of: &[String]) -> Result<Self, TrainError> {
        let compile = |patterns: &[String]| {
            bounded_regex::compile_set(patterns).map_err(|error| {
                let pattern = error.index.and_then(|index| patterns.get(index));
                match pattern {
                    Some(pattern) => TrainError::Marker {
                        pattern: pattern.clone(),
                        message: error.message,
                    },
                    None => TrainError::Markers(error.message),
                }
            })
        };
        Ok(Self {
            any_of: compile(any_of)?,
            none_of: compile(none_of)?,
        })
    }

    /// Whether `answer` has the tone.
    #[must_use]
    pub fn hold(&self, answer: &str) -> bool {
        (self.any_of.is_empty() || self.any_of.is_match(answer)) && !self.none_of.is_match(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answer_needs_one_required_marker_and_no_forbidden_one() {
        let strings = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let markers = ToneMarkers::new(
            &strings(&["😊|🎉", "(?i)\\bhappy\\b"]),
            &strings(&["(?i)dear partner"]),
        )
        .unwrap();
        assert!(markers.hold("So happy to help"));
        assert!(markers.hold("Done 🎉"));
        assert!(!markers.hold("Done."));
        assert!(!markers.hold("Dear Partner, so happy 😊"));
        assert!(ToneMarkers::default().hold("anything"));
        let error = ToneMarkers::new(&strings(&["(unclosed"]), &[])
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("tone marker `(unclosed`"), "{error}");
    }
}
