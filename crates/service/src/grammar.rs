//! What an answer must look like (JSON, JSON of a schema, calls of tools) as a grammar over the base's tokens. The rules and the
//! masks are `llguidance`'s; the engine only sees bits.
//!
//! A grammar is compiled on the request's thread and kept for the next request that wants the same. Each answer goes through a
//! copy of its own, so what one answer meets changes no other: neither its tokens nor its limits.

use std::collections::VecDeque;
use std::fmt;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use engine::{Constraint, Progress};
use llguidance::api::{ParserLimits, StopReason, TopLevelGrammar};
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Map, Value, json};

use crate::error::RequestError;
use crate::schema_limits;
use crate::tools::{Tool, ToolChoice, Tools};
use base::Base;

/// The longest schema, and the most that all tools' schemas take together, in bytes of compact JSON.
pub const MAX_SCHEMA_BYTES: usize = 64 << 10;
/// How long a grammar may take to compile, the wait for a turn included.
pub const MAX_COMPILE: Duration = Duration::from_secs(5);
/// How many grammars are compiled at once. One that takes too long goes on until it is through, as nothing can end it.
const COMPILERS: usize = 2;
/// How many compiled grammars are kept.
const KEPT: usize = 16;
/// The stack of a thread that compiles: nested schemas are walked by recursion, and JSON is read to a depth of 128.
const COMPILER_STACK: usize = 16 << 20;
/// The most characters of what `llguidance` says about a schema.
const MAX_SAID: usize = 300;
/// The field of a request's schema.
const SCHEMA: &str = "response_format.json_schema.schema";

/// What bounds the work of a grammar, whatever it is. The same on every machine, so an answer does not depend on its speed.
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

/// The shape of an answer.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum OutputFormat {
    /// As the model likes.
    #[default]
    Text,
    /// Any JSON object.
    JsonObject,
    /// JSON of this schema.
    JsonSchema {
        /// The schema.
        schema: Value,
        /// Whether a keyword that is not known is an error; otherwise it is passed over.
        strict: bool,
    },
}

/// The grammars of one base.
#[derive(Default)]
pub(super) struct Grammars {
    factory: OnceLock<Result<Arc<ParserFactory>, String>>,
    compilers: Arc<Compilers>,
    /// The one that was wanted last comes first.
    kept: Mutex<VecDeque<(String, Arc<Compiled>)>>,
}

impl Grammars {
    /// The grammar of an answer in this format, or with these tools; none where anything may be said.
    pub fn find(
        &self,
        base: &Base,
        format: &OutputFormat,
        tools: Option<&Tools>,
    ) -> Result<Option<Arc<dyn engine::Grammar>>, RequestError> {
        let (text, field) = match (format, tools) {
            (OutputFormat::Text, None) => return Ok(None),
            (OutputFormat::Text, Some(tools)) if tools.choice == ToolChoice::None => {
                return Ok(None);
            }
            (OutputFormat::Text, Some(tools)) => (calls(tools)?, "tools"),
            (OutputFormat::JsonObject, _) => {
                let schema = compact(&json!({"type": "object"}), true);
                (format!("start: %json {schema}"), "response_format")
            }
            (OutputFormat::JsonSchema { schema, strict }, _) => {
                let text = bounded(SCHEMA, schema, *strict, &mut 0)?;
                (format!("start: %json {text}"), SCHEMA)
            }
        };
        let refused = |message: String| RequestError::Schema {
            field: field.to_owned(),
            message,
        };
        let factory = self.factory.get_or_init(|| factory(base).map(Arc::new));
        let factory = factory
            .as_ref()
            .map_err(|message| refused(message.clone()))?;
        if let Some(compiled) = self.kept(&text) {
            return Ok(Some(compiled));
        }
        let compile = |grammar| self.compilers.compile(factory, grammar);
        let compiled = match compile(TopLevelGrammar::from_lark(text.clone())) {
            Ok(compiled) => Arc::new(compiled),
            Err(CompileError::Busy) => return Err(RequestError::GrammarsBusy),
            Err(CompileError::Slow) => return Err(refused(CompileError::slow())),
            // The grammar's own words have the place in the text that was made of the schemas; a schema alone has not.
            Err(CompileError::Refused(message)) => {
                let culprit =
                    schemas(format, tools, field).find_map(|(field, schema)| {
                        match compile(TopLevelGrammar::from_json_schema(schema)) {
                            Err(CompileError::Refused(message)) => Some((field, message)),
                            _ => None,
                        }
                    });
                let (field, message) = culprit.unwrap_or((field.to_owned(), message));
                return Err(RequestError::Schema { field, message });
            }
        };
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push_front((text, Arc::clone(&compiled)));
        kept.truncate(KEPT);
        Ok(Some(compiled))
    }

    fn kept(&self, text: &str) -> Option<Arc<Compiled>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let at = kept.iter().position(|(known, _)| known == text)?;
        let found = kept.remove(at)?;
        let compiled = Arc::clone(&found.1);
        kept.push_front(found);
        Some(compiled)
    }
}

/// What knows the base's tokens.
fn factory(base: &Base) -> Result<ParserFactory, String> {
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
            // No text begins with this byte, so no grammar of texts allows the token.
            word.insert(0, TokTrie::SPECIAL_TOKEN_MARKER);
        }
        words.push(word);
    }
    let trie = TokTrie::from(&TokRxInfo::new(vocabulary as u32, first), &words);
    let tokens: TokEnv = Arc::new(ApproximateTokEnv::new(trie.with_eos_tokens(ends)));
    let capabilities = InferenceCapabilities::default();
    let slices = SlicedBiasComputer::general_slices();
    let mut factory = ParserFactory::new(&tokens, capabilities, &slices)
        .map_err(|error| said(&error.to_string()))?;
    factory.quiet();
    *factory.limits_mut() = limits();
    Ok(factory)
}

/// Turns at compiling. A schema is a stranger's program, and a small one can take minutes: it is compiled on a thread of its own, and
/// waited for no longer than [`MAX_COMPILE`].
struct Compilers {
    free: Mutex<usize>,
    freed: Condvar,
}

impl Default for Compilers {
    fn default() -> Self {
        Compilers {
            free: Mutex::new(COMPILERS),
            freed: Condvar::new(),
        }
    }
}

enum CompileError {
    /// What is wrong with the grammar.
    Refused(String),
    /// It took too long.
    Slow,
    /// Others took too long.
    Busy,
}

impl CompileError {
    fn slow() -> String {
        let seconds = MAX_COMPILE.as_secs();
        format!("it takes longer than {seconds} s to compile; make it simpler")
    }
}

impl Compilers {
    fn compile(
        self: &Arc<Self>,
        factory: &Arc<ParserFactory>,
        grammar: TopLevelGrammar,
    ) -> Result<Compiled, CompileError> {
        let deadline = Instant::now() + MAX_COMPILE;
        let turn = self.turn(deadline).ok_or(CompileError::Busy)?;
        let factory = Arc::clone(factory);
        let (sender, compiled) = sync_channel(1);
        let work = move || {
            let compiled = compile(&factory, grammar);
            // Who waited may be gone.
            let _ = sender.send(compiled);
            drop(turn);
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

    /// Waits for a turn.
    fn turn(self: &Arc<Self>, deadline: Instant) -> Option<Turn> {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let options = deadline.saturating_duration_since(Instant::now());
        let waited = self
            .freed
            .wait_timeout_while(free, options, |free| *free == 0);
        let (mut free, _) = waited.unwrap_or_else(PoisonError::into_inner);
        *free = free.checked_sub(1)?;
        Some(Turn(Arc::clone(self)))
    }
}

struct Turn(Arc<Compilers>);

impl Drop for Turn {
    fn drop(&mut self) {
        *self.0.free.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.0.freed.notify_one();
    }
}

fn compile(factory: &ParserFactory, grammar: TopLevelGrammar) -> Result<Compiled, String> {
    let parser = factory.create_parser(grammar);
    let mut parser = parser.map_err(|error| said(&format!("{error:#}")))?;
    parser.start_without_prompt();
    // What the first mask takes is taken here, off the engine's thread.
    match parser.compute_mask() {
        Ok(_) => Ok(Compiled(Mutex::new(Matcher::new(Ok(parser))))),
        Err(_) if parser.stop_reason() == StopReason::NoExtensionBias => {
            Err("nothing that can be said fits it".to_owned())
        }
        Err(error) => Err(said(&error.to_string())),
    }
}

/// The schemas that a grammar was made of, each with its field.
fn schemas<'a>(
    format: &'a OutputFormat,
    tools: Option<&'a Tools>,
    field: &'a str,
) -> impl Iterator<Item = (String, Value)> + 'a {
    let own = match format {
        OutputFormat::JsonSchema { schema, strict } => {
            Some((field.to_owned(), guided(schema, *strict)))
        }
        OutputFormat::Text | OutputFormat::JsonObject => None,
    };
    let tools = tools.into_iter().flat_map(|tools| &tools.tools).enumerate();
    own.into_iter().chain(tools.map(|(index, tool)| {
        let schema = guided(&tool.arguments(), tool.strict);
        (parameters_of(index), schema)
    }))
}

fn parameters_of(tool: usize) -> String {
    format!("tools[{tool}].function.parameters")
}

/// On one line, and no longer than someone reads.
fn said(message: &str) -> String {
    let words: Vec<&str> = message.split_whitespace().collect();
    words.join(" ").chars().take(MAX_SAID).collect()
}

/// The schema with the way its JSON is written: as Python's `json.dumps` does, which models have read most of. With the white
/// space fixed, none can be written without end.
fn guided(schema: &Value, strict: bool) -> Value {
    let mut object = match schema {
        Value::Object(object) => object.clone(),
        _ => return schema.clone(),
    };
    object.insert(
        "x-guidance".to_owned(),
        json!({
            "whitespace_flexible": false,
            "item_separator": ", ",
            "key_separator": ": ",
            "lenient": !strict,
        }),
    );
    Value::Object(object)
}

fn compact(schema: &Value, strict: bool) -> String {
    guided(schema, strict).to_string()
}

/// The schema's text, if with the `bytes` before it is not too long.
fn bounded(
    field: &str,
    schema: &Value,
    strict: bool,
    bytes: &mut usize,
) -> Result<String, RequestError> {
    let refused = |message: String| RequestError::Schema {
        field: field.to_owned(),
        message,
    };
    if !schema.is_object() {
        return Err(refused("a schema is a JSON object".to_owned()));
    }
    *bytes += schema.to_string().len();
    if *bytes > MAX_SCHEMA_BYTES {
        return Err(refused(format!(
            "it takes {bytes} bytes, with those before it if there are; at most {MAX_SCHEMA_BYTES} are compiled"
        )));
    }
    schema_limits::check(schema).map_err(refused)?;
    Ok(compact(schema, strict))
}

/// The grammar of answers with tools.
///
/// ```text
/// <tool_call>
/// {"name": "weather", "arguments": {"city": "Paris"}}
/// </tool_call>
/// ```
fn calls(tools: &Tools) -> Result<String, RequestError> {
    let mut bytes = 0;
    let named = |tool: &Tool| match &tools.choice {
        ToolChoice::Named(name) => *name == tool.name,
        _ => true,
    };
    let (mut names, mut rules) = (Vec::new(), String::new());
    for (index, tool) in tools.tools.iter().enumerate() {
        let field = parameters_of(index);
        let schema = bounded(&field, &tool.arguments(), tool.strict, &mut bytes)?;
        if !named(tool) {
            continue;
        }
        // A name has letters, digits, `_` and `-` alone, so it stands in a text as it is.
        let name = &tool.name;
        names.push(format!("call_{index}"));
        rules += &format!(
            "call_{index}: \"\\n{{\\\"name\\\": \\\"{name}\\\", \\\"arguments\\\": \" arguments_{index} \
             \"}}\\n</tool_call>\"\narguments_{index}: %json {schema}\n"
        );
    }
    // A tool that is asked for by name is called once.
    let once = !tools.parallel || matches!(tools.choice, ToolChoice::Named(_));
    let more = match once {
        true => "",
        false => " (\"\\n<tool_call>\" call)*",
    };
    let start = match tools.choice {
        // A text without a call, or with calls at its end.
        ToolChoice::Auto => format!(
            "start: TEXT | before call{more}\n\
             TEXT: /(.|\\n)*/ & ~/(.|\\n)*<tool_call>(.|\\n)*/\n\
             before[lazy]: /(.|\\n)*<tool_call>/\n"
        ),
        _ => format!("start: \"<tool_call>\" call{more}\n"),
    };
    Ok(format!("{start}call: {}\n{rules}", names.join(" | ")))
}

/// A grammar at its start.
struct Compiled(Mutex<Matcher>);

impl fmt::Debug for Compiled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compiled").finish_non_exhaustive()
    }
}

impl engine::Grammar for Compiled {
    fn start(&self) -> Box<dyn Constraint> {
        let matcher = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Box::new(Walk(matcher.deep_clone()))
    }
}

/// One answer's way through a grammar.
struct Walk(Matcher);

impl Constraint for Walk {
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

fn failed(error: &dyn fmt::Display) -> String {
    format!("the answer's grammar failed: {}", said(&error.to_string()))
}

/// The schema of no arguments.
pub(super) fn no_arguments() -> Map<String, Value> {
    let mut schema = Map::new();
    schema.insert("type".to_owned(), json!("object"));
    schema.insert("properties".to_owned(), json!({}));
    schema.insert("additionalProperties".to_owned(), json!(false));
    schema
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_at_compiling_are_waited_for_and_given_back() {
        let compilers = Arc::new(Compilers::default());
        let soon = || Instant::now() + Duration::from_millis(20);
        let mut turns: Vec<Turn> = (0..COMPILERS)
            .map(|_| compilers.turn(soon()).unwrap())
            .collect();
        assert!(compilers.turn(soon()).is_none());
        let waiting = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| compilers.turn(Instant::now() + MAX_COMPILE));
            turns.pop();
            waiting.join().unwrap()
        });
        assert!(waiting.is_some());
        assert!(compilers.turn(soon()).is_none());
    }

    #[test]
    fn what_a_compiler_says_is_one_line_of_bounded_length() {
        assert_eq!(said("a\n  b\tc"), "a b c");
        assert_eq!(said(&"word ".repeat(1000)).chars().count(), MAX_SAID);
    }

    #[test]
    fn the_length_of_schemas_is_bounded_together() {
        let tool = |bytes: usize| Tool {
            name: format!("t{bytes}"),
            description: None,
            parameters: json!({"description": "x".repeat(bytes)})
                .as_object()
                .cloned(),
            strict: false,
        };
        let tools = |sizes: &[usize]| Tools {
            tools: sizes.iter().map(|bytes| tool(*bytes)).collect(),
            choice: ToolChoice::Auto,
            parallel: true,
        };
        calls(&tools(&[30_000, 35_000])).unwrap();
        let error = calls(&tools(&[30_000, 30_000, 10_000])).unwrap_err();
        assert_eq!(error.field().unwrap(), "tools[2].function.parameters");
        assert!(error.to_string().contains("at most 65536"), "{error}");
    }
}
