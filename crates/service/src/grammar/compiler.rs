//! Compiles grammars over the tokens of a base, on threads with bounds on time and memory.

use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base::Base;
use llguidance::api::{ParserLimits, StopReason, TopLevelGrammar};
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};

use super::constraint::{CompiledGrammar, one_line};

/// How long a grammar may take to compile, including the wait for a permit.
pub const MAX_COMPILE: Duration = Duration::from_secs(5);
/// How many grammars are compiled at once.
const COMPILERS: usize = 2;
/// The stack of a thread that compiles: nested schemas are walked by recursion, and JSON is read to a depth of 128.
const COMPILER_STACK: usize = 16 << 20;

/// Limits on the work of a grammar. They count operations, not time, so an answer does not depend on the speed of the machine.
fn limits() -> ParserLimits {
    ParserLimits {
        // Compiling: some 20 ms at 50 thousand a millisecond, and a few megabytes.
        initial_lexer_fuel: 1_000_000,
        max_grammar_size: 200_000,
        // One mask: some 15 ms.
        step_lexer_fuel: 200_000,
        step_max_items: 50_000,
        max_items_in_row: 2_000,
        // One answer: at 1 to 2 KiB each.
        max_lexer_states: 25_000,
        precompute_large_lexemes: true,
        verbose_errors: false,
    }
}

/// The factory of grammars over the base's tokens.
///
/// # Errors
/// A message for users.
pub fn parser_factory(base: &Base) -> Result<ParserFactory, String> {
    let tokenizer = &base.tokenizer;
    let ends = tokenizer.end_ids();
    let first = *ends
        .first()
        .ok_or("the base has no token that ends an answer")?;
    let vocabulary = base.model.config().vocab_size;
    let mut words = Vec::with_capacity(vocabulary);
    for id in 0..vocabulary as u32 {
        let mut word = tokenizer.token_bytes(id).to_vec();
        if tokenizer.is_special(id) {
            // No text begins with this byte, so a grammar of texts never allows the token.
            word.insert(0, TokTrie::SPECIAL_TOKEN_MARKER);
        }
        words.push(word);
    }
    let trie = TokTrie::from(&TokRxInfo::new(vocabulary as u32, first), &words);
    let tokens: TokEnv = Arc::new(ApproximateTokEnv::new(trie.with_eos_tokens(ends)));
    let capabilities = InferenceCapabilities::default();
    let slices = SlicedBiasComputer::general_slices();
    let mut factory = ParserFactory::new(&tokens, capabilities, &slices)
        .map_err(|error| one_line(&error.to_string()))?;
    factory.quiet();
    *factory.limits_mut() = limits();
    Ok(factory)
}

/// Limits how many grammars are compiled at once. A schema comes from a client, and a small one can take minutes: it is compiled
/// on its own thread, and the request waits no longer than [`MAX_COMPILE`].
pub struct CompilerPool {
    free: Mutex<usize>,
    freed: Condvar,
}

impl Default for CompilerPool {
    fn default() -> Self {
        CompilerPool {
            free: Mutex::new(COMPILERS),
            freed: Condvar::new(),
        }
    }
}

/// Why a grammar is not compiled.
pub enum CompileError {
    /// What is wrong with the grammar.
    Refused(String),
    /// It took too long.
    Slow,
    /// Others took too long.
    Busy,
}

impl CompileError {
    /// The message of [`CompileError::Slow`].
    pub fn slow() -> String {
        let seconds = MAX_COMPILE.as_secs();
        format!("it takes longer than {seconds} s to compile; make it simpler")
    }
}

impl CompilerPool {
    /// Compiles a grammar on another thread.
    ///
    /// # Errors
    /// [`CompileError`]; a compilation that is too slow continues until it ends, as nothing can stop it.
    pub fn compile(
        self: &Arc<Self>,
        factory: &Arc<ParserFactory>,
        grammar: TopLevelGrammar,
    ) -> Result<CompiledGrammar, CompileError> {
        let deadline = Instant::now() + MAX_COMPILE;
        let permit = self.permit(deadline).ok_or(CompileError::Busy)?;
        let factory = Arc::clone(factory);
        let (sender, compiled) = sync_channel(1);
        let work = move || {
            let compiled = compile(&factory, grammar);
            // The request may have given up.
            let _ = sender.send(compiled);
            drop(permit);
        };
        let thread = std::thread::Builder::new().name("lory-grammar".to_owned());
        let started = thread.stack_size(COMPILER_STACK).spawn(work);
        started
            .map_err(|error| CompileError::Refused(format!("no thread to compile on: {error}")))?;
        match compiled.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(compiled) => compiled.map_err(CompileError::Refused),
            Err(RecvTimeoutError::Timeout) => Err(CompileError::Slow),
            Err(RecvTimeoutError::Disconnected) => {
                let message = "the grammar compiler failed on it".to_owned();
                Err(CompileError::Refused(message))
            }
        }
    }

    /// Waits for a permit; none at the deadline.
    fn permit(self: &Arc<Self>, deadline: Instant) -> Option<CompilerPermit> {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let timeout = deadline.saturating_duration_since(Instant::now());
        let waited = self
            .freed
            .wait_timeout_while(free, timeout, |free| *free == 0);
        let (mut free, _) = waited.unwrap_or_else(PoisonError::into_inner);
        *free = free.checked_sub(1)?;
        Some(CompilerPermit(Arc::clone(self)))
    }
}

struct CompilerPermit(Arc<CompilerPool>);

impl Drop for CompilerPermit {
    fn drop(&mut self) {
        *self.0.free.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.0.freed.notify_one();
    }
}

fn compile(factory: &ParserFactory, grammar: TopLevelGrammar) -> Result<CompiledGrammar, String> {
    let parser = factory.create_parser(grammar);
    let mut parser = parser.map_err(|error| one_line(&format!("{error:#}")))?;
    parser.start_without_prompt();
    // The first mask is the most expensive one. Computing it here keeps that off the engine's thread.
    match parser.compute_mask() {
        Ok(_) => Ok(CompiledGrammar::new(Matcher::new(Ok(parser)))),
        Err(_) if parser.stop_reason() == StopReason::NoExtensionBias => {
            Err("no answer can match it".to_owned())
        }
        Err(error) => Err(one_line(&error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compiler_permits_are_waited_for_and_returned() {
        let compilers = Arc::new(CompilerPool::default());
        let soon = || Instant::now() + Duration::from_millis(20);
        let mut permits: Vec<CompilerPermit> = (0..COMPILERS)
            .map(|_| compilers.permit(soon()).unwrap())
            .collect();
        assert!(compilers.permit(soon()).is_none());
        let waiting = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| compilers.permit(Instant::now() + MAX_COMPILE));
            permits.pop();
            waiting.join().unwrap()
        });
        assert!(waiting.is_some());
        assert!(compilers.permit(soon()).is_none());
    }
}
