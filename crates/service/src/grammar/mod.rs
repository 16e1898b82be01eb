//! Makes a grammar over the base's tokens from a response format or from tools. `llguidance` has the rules and computes the
//! masks; the engine sees only bits.
//!
//! A grammar is compiled on the request's thread and cached for later requests with the same schemas. Each answer runs its own
//! copy, so one answer affects neither the tokens nor the limits of another.

mod compiler;
mod constraint;
mod schema;
mod schema_limits;

pub(crate) use constraint::FAILED;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use base::Base;
use llguidance::ParserFactory;
use llguidance::api::TopLevelGrammar;
use serde_json::{Value, json};

use self::compiler::{CompileError, CompilerPool, parser_factory};
use self::constraint::CompiledGrammar;
use self::schema::{checked_schema, compact, with_json_style};
use crate::error::RequestError;
use crate::tools::{Tool, ToolChoice, Tools};

/// The capacity of the cache, in grammars.
const CACHED: usize = 16;
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
    /// By the grammar's text, the most recently used first.
    cached: Mutex<VecDeque<(String, Arc<CompiledGrammar>)>>,
}

impl GrammarCache {
    /// The grammar of an answer in this format, or with these tools; none if the answer is free text.
    ///
    /// # Errors
    /// [`RequestError::Schema`], naming the field; [`RequestError::GrammarsBusy`].
    pub fn get(
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
        if let Some(compiled) = self.cached(&text) {
            return Ok(Some(compiled));
        }
        let compile = |grammar| self.compilers.compile(factory, grammar);
        let compiled = match compile(TopLevelGrammar::from_lark(text.clone())) {
            Ok(compiled) => Arc::new(compiled),
            Err(CompileError::Busy) => return Err(RequestError::GrammarsBusy),
            Err(CompileError::Slow) => return Err(refused(CompileError::slow())),
            // The error of the whole grammar refers to generated text. Compiling each schema alone finds the field at fault.
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
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        cached.push_front((text, Arc::clone(&compiled)));
        cached.truncate(CACHED);
        Ok(Some(compiled))
    }

    fn cached(&self, text: &str) -> Option<Arc<CompiledGrammar>> {
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        let at = cached.iter().position(|(known, _)| known == text)?;
        let found = cached.remove(at)?;
        let compiled = Arc::clone(&found.1);
        cached.push_front(found);
        Some(compiled)
    }
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
}
