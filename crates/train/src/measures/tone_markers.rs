//! Tone markers: regular expressions that an answer in the right tone matches, and others that it does not.

use regex::Regex;

use crate::error::TrainError;

/// Regular expressions that detect the tone of an answer.
#[derive(Debug, Clone, Default)]
pub struct ToneMarkers {
    /// The answer must match at least one of these, where there are any.
    pub any_of: Vec<Regex>,
    /// The answer must match none of these.
    pub none_of: Vec<Regex>,
}

impl ToneMarkers {
    /// Markers from patterns of the `regex` crate's syntax.
    ///
    /// # Errors
    /// A pattern does not parse, or would compile to more than regex's limit.
    pub fn new(any_of: &[String], none_of: &[String]) -> Result<Self, TrainError> {
        let compile = |patterns: &[String]| -> Result<Vec<Regex>, TrainError> {
            let one = |pattern: &String| {
                Regex::new(pattern).map_err(|error| TrainError::Marker {
                    pattern: pattern.clone(),
                    message: error.to_string(),
                })
            };
            patterns.iter().map(one).collect()
        };
        Ok(Self {
            any_of: compile(any_of)?,
            none_of: compile(none_of)?,
        })
    }

    /// Whether `answer` has the tone.
    #[must_use]
    pub fn hold(&self, answer: &str) -> bool {
        (self.any_of.is_empty() || self.any_of.iter().any(|marker| marker.is_match(answer)))
            && !self.none_of.iter().any(|marker| marker.is_match(answer))
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
