//! Compiles grammars over the tokens of a base, on threads with bounds on time and memory.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base::Base;
use llguidance::ParserFactory;
use llguidance::api::{GrammarInit, ParserLimits, StopReason, TopLevelGrammar};
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};

use crate::compute_arbiter::lower_thread_priority;

use super::constraint::{CompiledGrammar, PANICKED, one_line};

/// How long a grammar may take to compile, including the wait for a permit. The work itself is limited by [`COMPILE_FUEL`]; on a busy
/// machine a thread of low priority may wait for most of this time.
pub const MAX_COMPILE: Duration = Duration::from_secs(20);
/// How many grammars are compiled at once, and how many of one client.
const COMPILERS: usize = 2;
const COMPILERS_OF_A_CLIENT: usize = 1;
/// How many requests of one client may wait for a compiler.
const MAX_WAITING: usize = 16;
/// The stack of a thread that compiles: nested schemas are walked by recursion, and JSON is read to a depth of 128.
const COMPILER_STACK: usize = 16 << 20;

/// The work to compile a grammar, in the units of `llguidance`: some 50 ms, and a few megabytes. Schemas in use need up to some
/// 100 thousand.
const COMPILE_FUEL: u64 = 300_000;
/// The most symbols of a compiled grammar.
const MAX_SYMBOLS: usize = 200_000;
/// The work of the automaton for one mask: some 4 ms. Schemas in use need up to some 35 thousand.
const MASK_FUEL: u64 = 50_000;
/// The most items of the parser for one mask: some ms. Schemas in use need up to some 4 thousand.
const MAX_ITEMS: usize = 20_000;
/// The most items of the parser for one byte of an answer.
const MAX_ROW_ITEMS: usize = 2_000;
/// The most states of an answer's automaton, at 1 to 3 KiB each. Answers in use need up to some 2 thousand.
const MAX_STATES: usize = 10_000;

/// The message for a grammar that needs more than [`COMPILE_FUEL`].
pub const TOO_LARGE: &str =
    "its patterns, formats and multipleOf need too large an automaton; make them simpler";

/// Limits on the work of a grammar. They count operations, not time, so an answer does not depend on the speed of the machine.
fn limits() -> ParserLimits {
    ParserLimits {
        initial_lexer_fuel: COMPILE_FUEL,
        max_grammar_size: MAX_SYMBOLS,
        step_lexer_fuel: MASK_FUEL,
        step_max_items: MAX_ITEMS,
        max_items_in_row: MAX_ROW_ITEMS,
        max_lexer_states: MAX_STATES,
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

/// Limits how many grammars are compiled at once, in all and for each client. A schema comes from a client: it is compiled on its
/// own thread, and the request waits no longer than [`MAX_COMPILE`].
#[derive(Default)]
pub struct CompilerPool {
    state: Mutex<PoolState>,
    changed: Condvar,
}

/// Who compiles and who waits.
#[derive(Default)]
struct PoolState {
    /// The clients whose grammars are being compiled; none for a client without a key.
    running: Vec<Option<u64>>,
    /// The requests that wait, the earliest first: a number and the client.
    waiting: Vec<(u64, Option<u64>)>,
    /// When each client that waits or compiles last got a permit; the lowest is next.
    last: HashMap<u64, u64>,
    /// The last number that was given.
    number: u64,
}

impl PoolState {
    fn next_number(&mut self) -> u64 {
        self.number += 1;
        self.number
    }

    /// A client with a key may not hold all permits.
    fn may_run(&self, client: Option<u64>) -> bool {
        let own = self.running.iter().filter(|other| **other == client);
        client.is_none() || own.count() < COMPILERS_OF_A_CLIENT
    }

    /// The request that is next: among those that may run, of the client that waits longest for a turn, its earliest.
    fn next(&self) -> Option<u64> {
        if self.running.len() >= COMPILERS {
            return None;
        }
        let last = |client: Option<u64>| client.and_then(|client| self.last.get(&client));
        let ready = self.waiting.iter().filter(|entry| self.may_run(entry.1));
        let next = ready.min_by_key(|(number, client)| (last(*client).copied(), *number));
        next.map(|(number, _)| *number)
    }

    /// Forgets the turn of a client that neither waits nor compiles.
    fn forget(&mut self, client: Option<u64>) {
        let is_it = |other: &Option<u64>| *other == client;
        let waits = self.waiting.iter().any(|(_, other)| is_it(other));
        if let Some(client) = client.filter(|_| !waits && !self.running.iter().any(is_it)) {
            self.last.remove(&client);
        }
    }
}

/// Why a grammar is not compiled.
pub enum CompileError {
    /// What is wrong with the grammar.
    Refused(String),
    /// It took too long.
    Slow,
    /// Others took too long, or the client waits for too many others of its own.
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
    /// Compiles a grammar of a client on another thread; a client without a key is none.
    ///
    /// # Errors
    /// [`CompileError`]; a compilation that is too slow continues until its limits end it, as nothing can stop it.
    pub fn compile(
        self: &Arc<Self>,
        factory: &Arc<ParserFactory>,
        grammar: TopLevelGrammar,
        client: Option<u64>,
        deadline: Instant,
    ) -> Result<CompiledGrammar, CompileError> {
        let permit = self.permit(client, deadline).ok_or(CompileError::Busy)?;
        let factory = Arc::clone(factory);
        let (sender, compiled) = sync_channel(1);
        let work = move || {
            lower_thread_priority();
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

    /// Waits for a permit; none at the deadline, or if [`MAX_WAITING`] others of the client wait.
    fn permit(self: &Arc<Self>, client: Option<u64>, deadline: Instant) -> Option<CompilerPermit> {
        let mut state = self.lock();
        let own = state.waiting.iter().filter(|entry| entry.1 == client);
        if client.is_some() && own.count() >= MAX_WAITING {
            return None;
        }
        let number = state.next_number();
        state.waiting.push((number, client));
        let timeout = deadline.saturating_duration_since(Instant::now());
        let not_next = |state: &mut PoolState| state.next() != Some(number);
        let waited = self.changed.wait_timeout_while(state, timeout, not_next);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let is_next = state.next() == Some(number);
        state.waiting.retain(|entry| entry.0 != number);
        if is_next {
            state.running.push(client);
            let turn = state.next_number();
            if let Some(client) = client {
                state.last.insert(client, turn);
            }
        }
        state.forget(client);
        drop(state);
        // Another request may be next now.
        self.changed.notify_all();
        is_next.then(|| CompilerPermit {
            pool: Arc::clone(self),
            client,
        })
    }

    fn lock(&self) -> MutexGuard<'_, PoolState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct CompilerPermit {
    pool: Arc<CompilerPool>,
    client: Option<u64>,
}

impl Drop for CompilerPermit {
    fn drop(&mut self) {
        let mut state = self.pool.lock();
        if let Some(own) = state.running.iter().position(|other| *other == self.client) {
            state.running.swap_remove(own);
        }
        state.forget(self.client);
        drop(state);
        self.pool.changed.notify_all();
    }
}

fn compile(factory: &ParserFactory, grammar: TopLevelGrammar) -> Result<CompiledGrammar, String> {
    let checked = catch_unwind(AssertUnwindSafe(|| checked_lexer(factory, grammar)));
    let grammar = checked.unwrap_or_else(|_| Err(PANICKED.to_owned()))?;
    let parser = factory.create_parser_from_init_default(grammar);
    let mut parser = parser.map_err(|error| refusal(&format!("{error:#}")))?;
    parser.start_without_prompt();
    // The first mask is the most expensive one. Computing it here keeps that off the engine's thread.
    let mask = catch_unwind(AssertUnwindSafe(|| parser.compute_mask()));
    match mask.map_err(|_| PANICKED.to_owned())? {
        Ok(_) => Ok(CompiledGrammar::new(parser)),
        Err(_) if parser.stop_reason() == StopReason::NoExtensionBias => {
            Err("no answer can match it".to_owned())
        }
        Err(error) => Err(refusal(&error.to_string())),
    }
}

/// What a compilation that ran out of work says; other messages of the library stay.
fn refusal(message: &str) -> String {
    let ran_out = ["fuel", "precomputation failed", "too many"];
    match ran_out.iter().any(|part| message.contains(part)) {
        true => TOO_LARGE.to_owned(),
        false => one_line(message),
    }
}

/// The grammar with its lexer, whose first transitions are within the limit on work. The library computes them without a limit
/// when it makes a parser, and for some schemas of a few bytes they take minutes.
fn checked_lexer(factory: &ParserFactory, grammar: TopLevelGrammar) -> Result<GrammarInit, String> {
    let mut limits = factory.limits().clone();
    let tokens = Some(factory.tok_env().clone());
    let grammar = GrammarInit::Serialized(grammar).to_internal(tokens, limits.clone());
    let (grammar, lexer) = grammar.map_err(|error| refusal(&format!("{error:#}")))?;
    let mut whole = lexer.clone();
    whole.add_extra_lexemes(&factory.extra_lexemes());
    let automaton = whole.to_regex_vec(&mut limits);
    let mut automaton = automaton.map_err(|error| refusal(&format!("{error:#}")))?;
    automaton.set_fuel(limits.initial_lexer_fuel);
    automaton.set_max_states(limits.max_lexer_states);
    let start = automaton.initial_state(&whole.all_lexemes());
    for byte in 0..=u8::MAX {
        automaton.transition(start, byte);
        if automaton.has_error() {
            return Err(TOO_LARGE.to_owned());
        }
    }
    Ok(GrammarInit::Internal(grammar, lexer))
}

#[cfg(test)]
pub(super) mod tests {
    use rand_xoshiro::SplitMix64;
    use rand_xoshiro::rand_core::{Rng as _, SeedableRng as _};
    use serde_json::json;

    use super::super::constraint::RequestGrammar;
    use super::*;

    const SOON: Duration = Duration::from_millis(20);

    fn pool() -> Arc<CompilerPool> {
        Arc::new(CompilerPool::default())
    }

    fn soon() -> Instant {
        Instant::now() + SOON
    }

    #[test]
    fn compiler_permits_are_waited_for_and_returned() {
        let compilers = pool();
        let mut permits: Vec<CompilerPermit> = (0..COMPILERS)
            .map(|_| compilers.permit(None, soon()).unwrap())
            .collect();
        assert!(compilers.permit(None, soon()).is_none());
        let waiting = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| compilers.permit(None, Instant::now() + MAX_COMPILE));
            permits.pop();
            waiting.join().unwrap()
        });
        assert!(waiting.is_some());
        assert!(compilers.permit(None, soon()).is_none());
    }

    #[test]
    fn one_client_leaves_a_compiler_to_the_others() {
        let compilers = pool();
        let first = compilers.permit(Some(1), soon()).unwrap();
        assert!(compilers.permit(Some(1), soon()).is_none());
        let other = compilers.permit(Some(2), soon());
        assert!(other.is_some());
        assert!(compilers.permit(Some(3), soon()).is_none());
        drop(first);
        assert!(compilers.permit(Some(1), soon()).is_some());
        drop(other);
        let state = compilers.lock();
        assert!(state.last.is_empty() && state.running.is_empty() && state.waiting.is_empty());
    }

    #[test]
    fn clients_take_turns_regardless_of_how_many_requests_wait() {
        let mut state = PoolState::default();
        // Two clients with many requests each, and a third with one, which came last.
        for number in 0..20 {
            state.waiting.push((number, Some(1 + number % 2)));
        }
        state.waiting.push((20, Some(3)));
        state.number = 20;
        state.running = vec![Some(1)];
        state.last = HashMap::from([(1, 10), (2, 11)]);
        assert_eq!(state.next(), Some(20));
        state.last.insert(3, 12);
        assert_eq!(state.next(), Some(1), "the earliest of client 2");
        state.running = vec![Some(2)];
        assert_eq!(state.next(), Some(0), "the earliest of client 1");
        state.running = vec![Some(1), Some(2)];
        assert_eq!(state.next(), None);
    }

    /// A factory over single bytes.
    fn factory() -> ParserFactory {
        factory_with(limits())
    }

    fn factory_with(limits: ParserLimits) -> ParserFactory {
        let tokens = ApproximateTokEnv::single_byte_env();
        let slices = SlicedBiasComputer::general_slices();
        let mut factory =
            ParserFactory::new(&tokens, InferenceCapabilities::default(), &slices).unwrap();
        factory.quiet();
        *factory.limits_mut() = limits;
        factory
    }

    /// Limits that nothing in these tests reaches.
    fn no_limits() -> ParserLimits {
        ParserLimits {
            initial_lexer_fuel: u64::MAX,
            max_grammar_size: 100_000_000,
            step_lexer_fuel: u64::MAX,
            step_max_items: 100_000_000,
            max_items_in_row: 100_000_000,
            max_lexer_states: 100_000_000,
            ..limits()
        }
    }

    /// Compiles a schema and reads `text`, with a mask before each byte, as an answer does.
    fn read(limits: ParserLimits, schema: &serde_json::Value, text: &str) -> Result<(), String> {
        use engine::Grammar as _;
        let grammar = TopLevelGrammar::from_json_schema(schema.clone());
        let grammar = RequestGrammar {
            compiled: Arc::new(compile(&factory_with(limits), grammar)?),
            client: None,
            memory: Arc::default(),
        };
        let mut answer = grammar.start();
        text.bytes().try_for_each(|byte| {
            answer.mask(&mut [0; 16])?;
            answer.commit(u32::from(byte)).map(|_| ())
        })
    }

    #[test]
    fn answer_whose_automaton_has_too_many_states_is_refused() {
        let mut dice = SplitMix64::seed_from_u64(1);
        let letter = |_| char::from(b'a' + (dice.next_u64() % 8) as u8);
        let text: String = ['"'].into_iter().chain((0..900).map(letter)).collect();
        // Each letter leads to a state of its own.
        let pattern = "^.*(a.{20}|b.{21}|c.{22}|d.{23}|e.{24}|f.{25}|g.{26}|h.{27})$";
        let schema = json!({"type": "string", "pattern": pattern});
        read(no_limits(), &schema, &text).unwrap();
        let states = ParserLimits {
            max_lexer_states: limits().max_lexer_states,
            ..no_limits()
        };
        let message = read(states, &schema, &text).unwrap_err();
        assert!(message.contains("too many states"), "{message}");
    }

    #[test]
    fn answer_whose_mask_takes_too_much_work_is_refused() {
        // Each letter multiplies the ways in which the text before it can be divided.
        let schema = json!({"type": "string", "pattern": "^(.{0,100}a.{0,100}b){0,100}$"});
        let mut dice = SplitMix64::seed_from_u64(1);
        let letter = |_| char::from(b'a' + (dice.next_u64() % 3) as u8);
        let text: String = ['"'].into_iter().chain((0..160).map(letter)).collect();
        read(no_limits(), &schema, &text).unwrap();
        let work = ParserLimits {
            step_lexer_fuel: limits().step_lexer_fuel,
            ..no_limits()
        };
        let message = read(work, &schema, &text).unwrap_err();
        assert!(message.contains("too many expressions"), "{message}");
    }

    /// `lists` alternatives, each with as many lists as `each`, whose items are all different.
    fn alternative_lists(lists: usize, each: usize) -> serde_json::Value {
        let list = |n: usize| json!({"type": "array", "items": {"const": n}});
        let each: Vec<_> = (0..each).map(list).collect();
        json!({"anyOf": vec![json!({"anyOf": each}); lists]})
    }

    #[test]
    fn schema_with_very_many_alternatives_is_refused() {
        // The library has a limit of its own on the size of a schema.
        let message = read(no_limits(), &alternative_lists(300, 300), "[1").unwrap_err();
        assert!(message.contains("schema too large"), "{message}");
        // Smaller ones are within it.
        let items = ParserLimits {
            step_max_items: limits().step_max_items,
            ..no_limits()
        };
        let row = ParserLimits {
            max_items_in_row: limits().max_items_in_row,
            ..no_limits()
        };
        for (lists, limits, expected) in [
            (12, items, "Too many items (limit 20000"),
            (4, row, "Current row has 7200 items; max is 2000"),
        ] {
            let schema = alternative_lists(lists, 300);
            read(no_limits(), &schema, "[1").unwrap();
            let message = read(limits, &schema, "[1").unwrap_err();
            assert!(message.contains(expected), "{message}");
        }
        read(limits(), &alternative_lists(1, 300), "[1").unwrap();
    }

    #[test]
    fn grammar_that_compiles_for_too_long_is_given_up() {
        // It would compile for half a minute or more.
        let slow = json!({"type": "integer", "multipleOf": 999_983});
        let factory = Arc::new(factory_with(no_limits()));
        let grammar = TopLevelGrammar::from_json_schema(slow);
        let started = Instant::now();
        let compiled = pool().compile(&factory, grammar, Some(1), started + 10 * SOON);
        assert!(matches!(compiled, Err(CompileError::Slow)));
        assert!(started.elapsed() < MAX_COMPILE);
        assert!(CompileError::slow().contains("longer than 20 s"));
    }

    /// A step waits for the slowest of its threads, so a grammar must not take the time of one.
    #[cfg(target_os = "linux")]
    #[test]
    fn grammar_compiles_at_low_thread_priority() {
        let slow = json!({"type": "integer", "multipleOf": 999_983});
        let factory = Arc::new(factory_with(no_limits()));
        let grammar = TopLevelGrammar::from_json_schema(slow);
        // It goes on when the request has given up.
        let compiled = pool().compile(&factory, grammar, Some(1), soon());
        assert!(matches!(compiled, Err(CompileError::Slow)));
        let own: Vec<i64> = std::fs::read_dir("/proc/self/task")
            .unwrap()
            .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("stat")).ok())
            .filter(|stat| stat.contains("(lory-grammar)"))
            .filter_map(|stat| stat.rsplit(") ").next()?.split(' ').nth(16)?.parse().ok())
            .collect();
        assert!(
            !own.is_empty() && own.iter().all(|nice| *nice >= 10),
            "{own:?}"
        );
    }

    /// A compiled schema over single bytes.
    pub fn compiled(schema: serde_json::Value) -> CompiledGrammar {
        compile(&factory(), TopLevelGrammar::from_json_schema(schema)).unwrap()
    }

    #[test]
    fn schema_with_too_large_an_automaton_is_refused() {
        let factory = factory();
        let compiled = |schema| compile(&factory, TopLevelGrammar::from_json_schema(schema));
        // Each of these would compile for half a minute or more.
        for schema in [
            json!({"type": "integer", "multipleOf": 999_983}),
            json!({"type": "integer", "multipleOf": 65_537, "minimum": 1_000_003}),
            json!({"type": "integer", "allOf": [{"multipleOf": 911}, {"multipleOf": 919}]}),
        ] {
            let message = compiled(schema).unwrap_err();
            assert!(message.contains("too large an automaton"), "{message}");
        }
        // The library's arithmetic overflows with these.
        for schema in [
            json!({"type": "integer", "multipleOf": 4_294_967_291u32}),
            json!({"type": "integer", "multipleOf": 1e-9}),
        ] {
            assert!(compiled(schema).is_err());
        }
        for schema in [
            json!({"type": "integer", "multipleOf": 3600}),
            json!({"type": "number", "multipleOf": 0.01, "minimum": 0, "maximum": 99_999.99}),
            json!({"type": "string", "format": "uri"}),
            json!({"type": "string", "pattern": "^[\\p{L} .'-]{1,100}$"}),
            json!({"type": "object", "properties": {"a": {"type": "string", "maxLength": 2000}}}),
        ] {
            compiled(schema).unwrap();
        }
    }

    #[test]
    fn waiting_requests_of_a_client_are_limited() {
        let compilers = pool();
        let _running = compilers.permit(Some(1), soon()).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..MAX_WAITING {
                scope.spawn(|| compilers.permit(Some(1), Instant::now() + 50 * SOON));
            }
            while compilers.lock().waiting.len() < MAX_WAITING {
                std::thread::yield_now();
            }
            let started = Instant::now();
            assert!(compilers.permit(Some(1), started + 1000 * SOON).is_none());
            assert!(started.elapsed() < 50 * SOON, "it is refused at once");
            assert!(compilers.permit(Some(2), soon()).is_some());
        });
    }
}
