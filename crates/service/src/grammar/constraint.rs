//! Runs a compiled grammar as the engine's constraint on an answer.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use engine::{Constraint, Progress};
use llguidance::Matcher;

/// The most characters of an error message of `llguidance`.
const MAX_MESSAGE: usize = 300;

/// A grammar in its initial state, which every answer copies.
pub struct CompiledGrammar(Mutex<Matcher>);

impl fmt::Debug for CompiledGrammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CompiledGrammar").finish_non_exhaustive()
    }
}

impl CompiledGrammar {
    pub fn new(matcher: Matcher) -> CompiledGrammar {
        CompiledGrammar(Mutex::new(matcher))
    }
}

impl engine::Grammar for CompiledGrammar {
    fn start(&self) -> Box<dyn Constraint> {
        let matcher = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Box::new(GrammarMatcher(matcher.deep_clone()))
    }
}

/// The state of one answer in its grammar.
struct GrammarMatcher(Matcher);

impl Constraint for GrammarMatcher {
    fn mask(&mut self, allowed: &mut [u32]) -> Result<(), String> {
        let mask = self.0.compute_mask().map_err(|error| failed(&error))?;
        for (word, bits) in allowed.iter_mut().zip(mask.as_slice()) {
            *word = *bits;
        }
        Ok(())
    }

    fn commit(&mut self, token: u32) -> Result<Progress, String> {
        self.0
            .consume_token(token)
            .map_err(|error| failed(&error))?;
        match self.0.stop_reason() {
            reason if !reason.is_ok() => Err(failed(&reason)),
            _ if self.0.is_stopped() => Ok(Progress::Complete),
            _ => Ok(Progress::Open),
        }
    }
}

/// How the message of an answer begins whose grammar took too much work.
pub const FAILED: &str = "the answer's grammar failed: ";

fn failed(error: &dyn fmt::Display) -> String {
    format!("{FAILED}{}", one_line(&error.to_string()))
}

/// A message on one line, cut to [`MAX_MESSAGE`] characters.
pub fn one_line(message: &str) -> String {
    let words: Vec<&str> = message.split_whitespace().collect();
    words.join(" ").chars().take(MAX_MESSAGE).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compiler_message_is_one_line_of_limited_length() {
        assert_eq!(one_line("a\n  b\tc"), "a b c");
        assert_eq!(one_line(&"word ".repeat(1000)).chars().count(), MAX_MESSAGE);
    }
}
