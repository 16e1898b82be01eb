//! Runs a compiled grammar as the engine's constraint on an answer.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use engine::{Constraint, Progress};
use llguidance::TokenParser;
use llguidance::api::StopReason;

use super::memory::{GrammarMemory, MemoryLease};

/// The most characters of an error message of `llguidance`.
const MAX_MESSAGE: usize = 300;
/// The message for a panic of `llguidance`, whose own message is about its source.
pub const PANICKED: &str = "the grammar library panicked on it";

/// A grammar in its initial state, which every answer copies.
pub struct CompiledGrammar {
    initial: Mutex<TokenParser>,
    bytes: usize,
}

impl fmt::Debug for CompiledGrammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CompiledGrammar").finish_non_exhaustive()
    }
}

impl CompiledGrammar {
    pub fn new(initial: TokenParser) -> CompiledGrammar {
        CompiledGrammar {
            bytes: automaton_bytes(&initial),
            initial: Mutex::new(initial),
        }
    }

    /// The bytes of its automaton.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// A compiled grammar for the answers of one request, whose client pays for their memory.
#[derive(Debug)]
pub struct RequestGrammar {
    pub compiled: Arc<CompiledGrammar>,
    pub client: Option<u64>,
    pub memory: Arc<GrammarMemory>,
}

impl engine::Grammar for RequestGrammar {
    fn start(&self) -> Box<dyn Constraint> {
        let initial = &self.compiled.initial;
        let initial = initial.lock().unwrap_or_else(PoisonError::into_inner);
        Box::new(AnswerConstraint {
            parser: initial.deep_clone(),
            lease: self.memory.lease(self.client),
        })
    }
}

/// The state of one answer in its grammar.
struct AnswerConstraint {
    parser: TokenParser,
    lease: MemoryLease,
}

impl AnswerConstraint {
    /// Runs the library's code; its errors and panics end the answer.
    fn run<T, E: fmt::Display>(
        &mut self,
        work: impl FnOnce(&mut TokenParser) -> Result<T, E>,
    ) -> Result<T, String> {
        let parser = &mut self.parser;
        match catch_unwind(AssertUnwindSafe(|| work(parser))) {
            Ok(done) => done.map_err(|error| one_line(&error.to_string())),
            Err(_) => Err(PANICKED.to_owned()),
        }
    }
}

impl Constraint for AnswerConstraint {
    fn mask(&mut self, allowed: &mut [u32]) -> Result<(), String> {
        let mask = self.run(TokenParser::compute_mask)?;
        for (word, bits) in allowed.iter_mut().zip(mask.as_slice()) {
            *word = *bits;
        }
        self.lease.resize(automaton_bytes(&self.parser))
    }

    fn commit(&mut self, token: u32) -> Result<Progress, String> {
        self.run(|parser| {
            parser.consume_token(token)?;
            parser.check_stop()
        })?;
        match self.parser.stop_reason() {
            StopReason::NotStopped => Ok(Progress::Open),
            reason if reason.is_ok() => Ok(Progress::Complete),
            reason => Err(one_line(&reason.to_string())),
        }
    }
}

/// The bytes of a parser's automaton, which grows while an answer runs.
fn automaton_bytes(parser: &TokenParser) -> usize {
    parser.parser.lexer_stats().num_bytes
}

/// A message on one line, cut to [`MAX_MESSAGE`] characters.
pub fn one_line(message: &str) -> String {
    // The library's text of a caught panic is a stack trace.
    if message.starts_with("panic:") {
        return PANICKED.to_owned();
    }
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
        assert_eq!(one_line("panic: at src/x.rs:1\n0: frame"), PANICKED);
    }

    /// An answer of a client, with the tokens of `text` so far.
    fn answer(grammar: &RequestGrammar, text: &str) -> Box<dyn Constraint> {
        use engine::Grammar as _;
        let mut answer = grammar.start();
        answer.mask(&mut [0; 16]).unwrap();
        for byte in text.bytes() {
            answer.commit(u32::from(byte)).unwrap();
            answer.mask(&mut [0; 16]).unwrap();
        }
        answer
    }

    #[test]
    fn automaton_of_an_answer_counts_for_its_client_alone() {
        let schema = serde_json::json!({"type": "string", "pattern": "^(a|b)*a(a|b){8}$"});
        let compiled = Arc::new(super::super::compiler::tests::compiled(schema));
        let memory = Arc::new(GrammarMemory::default());
        let of_client = |client| RequestGrammar {
            compiled: Arc::clone(&compiled),
            client: Some(client),
            memory: Arc::clone(&memory),
        };
        let (one, other) = (of_client(1), of_client(2));
        let begun = answer(&one, "\"");
        let bytes = memory.bytes_of(Some(1));
        assert!(bytes > 0);
        let long = answer(&other, "\"abbabaabbbabaababbabbaaababbbabaabab");
        // The states that one answer adds are not in the copy of another.
        assert!(memory.bytes_of(Some(2)) > bytes);
        let again = answer(&one, "\"");
        assert_eq!(memory.bytes_of(Some(1)), 2 * bytes);
        drop((begun, again, long));
        assert_eq!(memory.bytes_of(Some(1)) + memory.bytes_of(Some(2)), 0);
    }

    #[test]
    fn answer_whose_automaton_grows_too_far_is_refused() {
        // Each text has a state of its own, and no text of less than 1,500 characters matches.
        let pattern = "^.*([a-m].{1500}|[n-z].{1600}|[A-M].{1700}|[N-Z].{1650})$";
        let schema = serde_json::json!({"type": "string", "pattern": pattern});
        let grammar = RequestGrammar {
            compiled: Arc::new(super::super::compiler::tests::compiled(schema)),
            client: None,
            memory: Arc::default(),
        };
        let mut answer = answer(&grammar, "\"");
        let run = (0..1900u32).try_for_each(|n| {
            let letter = b"anANmzMZ"[(n.wrapping_mul(2_654_435_761) >> 29) as usize];
            answer.commit(u32::from(letter))?;
            answer.mask(&mut [0; 16])
        });
        let message = run.unwrap_err();
        assert!(message.len() < 500, "{message}");
    }
}
