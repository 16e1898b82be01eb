//! Makes a grammar over the base's tokens from a response format or from tools. `llguidance` has the rules and computes the
//! masks; the engine sees only bits.
//!
//! A grammar is compiled on the request's thread and cached for later requests with the same schemas. Each answer runs its own
//! copy, so one answer affects neither the tokens nor the limits of another.

mod compiler;
mod constraint;
mod memory;
mod schema;
mod schema_limits;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use base::Base;
use llguidance::ParserFactory;
use llguidance::api::TopLevelGrammar;
use serde_json::{Value, json};

use self::compiler::{CompileError, CompilerPool, MAX_COMPILE, TOO_LARGE, parser_factory};
use self::constraint::{CompiledGrammar, RequestGrammar};
use self::memory::GrammarMemory;
use self::schema::{checked_schema, compact, with_json_style};
use crate::error::RequestError;
use crate::tools::{Tool, ToolChoice, Tools};

/// The most bytes of cached grammars, and of those that one client compiled.
const CACHED_BYTES: usize = 32 << 20;
const CACHED_CLIENT_BYTES: usize = 8 << 20;
/// The field of a request's schema.
const SCHEMA: &str = "response_format.json_schema.schema";

/// The format of an answer.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum OutputFormat {
    /// Any text.
    #[default]
    Text,
    /// Any JSON object.
    JsonObject,
    /// JSON of this schema.
    JsonSchema {
        /// The schema.
        schema: Value,
        /// Whether an unknown keyword is an error; otherwise it is ignored.
        strict: bool,
    },
}

/// Compiles and caches the grammars of one base.
#[derive(Default)]
pub(super) struct GrammarCache {
    factory: OnceLock<Result<Arc<ParserFactory>, String>>,
    compilers: Arc<CompilerPool>,
    memory: Arc<GrammarMemory>,
    /// The most recently used first.
    cached: Mutex<VecDeque<CachedGrammar>>,
}

struct CachedGrammar {
    text: String,
    grammar: Arc<CompiledGrammar>,
    /// The client that compiled it.
    client: Option<u64>,
}

impl CachedGrammar {
    fn bytes(&self) -> usize {
        self.text.len() + self.grammar.bytes()
    }
}

impl GrammarCache {
    /// The grammar of an answer in this format, or with these tools; none if the answer is free text. `client` pays for the
    /// work and the memory; none for a client without a key.
    ///
    /// # Errors
    /// [`RequestError::Schema`], naming the field; [`RequestError::GrammarsBusy`].
    pub fn get(
        &self,
        base: &Base,
        format: &OutputFormat,
        tools: Option<&Tools>,
        client: Option<u64>,
    ) -> Result<Option<Arc<dyn engine::Grammar>>, RequestError> {
        let (text, field) = match (format, tools) {
            (OutputFormat::Text, None) => return Ok(None),
            (OutputFormat::Text, Some(tools)) if tools.choice == ToolChoice::None => {
                return Ok(None);
            }
            (OutputFormat::Text, Some(tools)) => (tool_call_grammar(tools)?, "tools"),
            (OutputFormat::JsonObject, _) => {
                let schema = compact(&json!({"type": "object"}), true);
                (format!("start: %json {schema}"), "response_format")
            }
            (OutputFormat::JsonSchema { schema, strict }, _) => {
                let text = checked_schema(SCHEMA, schema, *strict, &mut 0)?;
                (format!("start: %json {text}"), SCHEMA)
            }
        };
        let refused = |message: String| RequestError::Schema {
            field: field.to_owned(),
            message,
        };
        let factory = self
            .factory
            .get_or_init(|| parser_factory(base).map(Arc::new));
        let factory = factory
            .as_ref()
            .map_err(|message| refused(message.clone()))?;
        let running = |compiled| -> Arc<dyn engine::Grammar> {
            Arc::new(RequestGrammar {
                compiled,
                client,
                memory: Arc::clone(&self.memory),
            })
        };
        if let Some(compiled) = self.cached(&text) {
            return Ok(Some(running(compiled)));
        }
        let deadline = Instant::now() + MAX_COMPILE;
        let compile = |grammar| self.compilers.compile(factory, grammar, client, deadline);
        let compiled = match compile(TopLevelGrammar::from_lark(text.clone())) {
            Ok(compiled) => Arc::new(compiled),
            Err(CompileError::Busy) => return Err(RequestError::GrammarsBusy),
            Err(CompileError::Slow) => return Err(refused(CompileError::slow())),
            // The error of the whole grammar refers to generated text. Compiling each schema alone finds the field at fault.
            Err(CompileError::Refused(message)) => {
                let schemas: Vec<(String, Value)> = schemas(format, tools, field).collect();
                let culprit = match schemas.as_slice() {
                    // To compile it again would take as much work, with the same end.
                    [(only, _)] if message == TOO_LARGE => Some((only.clone(), message.clone())),
                    _ => schemas
                        .into_iter()
                        .take_while(|_| Instant::now() < deadline)
                        .find_map(|(field, schema)| {
                            match compile(TopLevelGrammar::from_json_schema(schema)) {
                                Err(CompileError::Refused(message)) => Some((field, message)),
                                _ => None,
                            }
                        }),
                };
                let (field, message) = culprit.unwrap_or((field.to_owned(), message));
                return Err(RequestError::Schema { field, message });
            }
        };
        self.cache(text, Arc::clone(&compiled), client);
        Ok(Some(running(compiled)))
    }

    /// Caches a grammar. A client that has too many loses its own.
    fn cache(&self, text: String, grammar: Arc<CompiledGrammar>, client: Option<u64>) {
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        cached.push_front(CachedGrammar {
            text,
            grammar,
            client,
        });
        while let Some(last) = excess(&cached, client) {
            cached.remove(last);
        }
    }

    fn cached(&self, text: &str) -> Option<Arc<CompiledGrammar>> {
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        let at = cached.iter().position(|known| known.text == text)?;
        let found = cached.remove(at)?;
        let compiled = Arc::clone(&found.grammar);
        cached.push_front(found);
        Some(compiled)
    }
}

/// The grammar that must leave the cache after `client` has added one: its oldest one, or the oldest of the client with the most
/// bytes; none if the cache is small enough.
fn excess(cached: &VecDeque<CachedGrammar>, client: Option<u64>) -> Option<usize> {
    let mut bytes: HashMap<Option<u64>, usize> = HashMap::new();
    for grammar in cached {
        *bytes.entry(grammar.client).or_default() += grammar.bytes();
    }
    let own = bytes.get(&client).copied().unwrap_or(0);
    let payer = if client.is_some() && own > CACHED_CLIENT_BYTES {
        client
    } else if bytes.values().sum::<usize>() > CACHED_BYTES {
        *bytes.iter().max_by_key(|(_, bytes)| **bytes)?.0
    } else {
        return None;
    };
    cached.iter().rposition(|grammar| grammar.client == payer)
}

/// The schemas of a request, each with its field.
fn schemas<'a>(
    format: &'a OutputFormat,
    tools: Option<&'a Tools>,
    field: &'a str,
) -> impl Iterator<Item = (String, Value)> + 'a {
    let own = match format {
        OutputFormat::JsonSchema { schema, strict } => {
            Some((field.to_owned(), with_json_style(schema, *strict)))
        }
        OutputFormat::Text | OutputFormat::JsonObject => None,
    };
    let tools = tools.into_iter().flat_map(|tools| &tools.tools).enumerate();
    own.into_iter().chain(tools.map(|(index, tool)| {
        let schema = with_json_style(&tool.arguments(), tool.strict);
        (parameters_of(index), schema)
    }))
}

fn parameters_of(tool: usize) -> String {
    format!("tools[{tool}].function.parameters")
}

/// The grammar of answers with tools.
///
/// ```text
/// <tool_call>
/// {"name": "weather", "arguments": {"city": "Paris"}}
/// </tool_call>
/// ```
fn tool_call_grammar(tools: &Tools) -> Result<String, RequestError> {
    let mut bytes = 0;
    let is_allowed = |tool: &Tool| match &tools.choice {
        ToolChoice::Named(name) => *name == tool.name,
        _ => true,
    };
    let (mut names, mut rules) = (Vec::new(), String::new());
    for (index, tool) in tools.tools.iter().enumerate() {
        let field = parameters_of(index);
        let schema = checked_schema(&field, &tool.arguments(), tool.strict, &mut bytes)?;
        if !is_allowed(tool) {
            continue;
        }
        // A name has only letters, digits, `_` and `-`, so it needs no escapes.
        let name = &tool.name;
        names.push(format!("call_{index}"));
        rules += &format!(
            "call_{index}: \"\\n{{\\\"name\\\": \\\"{name}\\\", \\\"arguments\\\": \" arguments_{index} \
             \"}}\\n</tool_call>\"\narguments_{index}: %json {schema}\n"
        );
    }
    // A tool that the request names is called once.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn total_length_of_schemas_is_limited() {
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
        tool_call_grammar(&tools(&[30_000, 35_000])).unwrap();
        let error = tool_call_grammar(&tools(&[30_000, 30_000, 10_000])).unwrap_err();
        assert_eq!(error.field().unwrap(), "tools[2].function.parameters");
        assert!(error.to_string().contains("at most 65536"), "{error}");
    }

    #[test]
    fn schemas_of_one_client_push_out_only_its_own() {
        let cache = GrammarCache::default();
        let grammar = Arc::new(compiler::tests::compiled(json!({"type": "null"})));
        // A grammar of 3 MiB, of which two and not three fit into a client's part.
        let text = |name: &str| name.to_owned() + &" ".repeat(3 << 20);
        let add = |name: &str, client| cache.cache(text(name), Arc::clone(&grammar), client);
        let is_cached = |name: &str| {
            let cached = cache.cached.lock().unwrap();
            cached.iter().any(|known| known.text == text(name))
        };
        add("other", Some(2));
        for name in ["first", "second", "third"] {
            add(name, Some(1));
        }
        assert!(!is_cached("first") && is_cached("second") && is_cached("third"));
        assert!(is_cached("other"));
        // All parts together exceed the whole: the client with the most pays.
        for client in 3..7 {
            add(&format!("a{client}"), Some(client));
            add(&format!("b{client}"), Some(client));
        }
        assert!(is_cached("other"));
        let cached = cache.cached.lock().unwrap();
        let bytes: usize = cached.iter().map(CachedGrammar::bytes).sum();
        assert!(bytes <= CACHED_BYTES && bytes > CACHED_BYTES - (7 << 20));
    }
}
