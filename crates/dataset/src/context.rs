//! The columns next to a question that belong to it: `system`, `history` and `tools`.
//!
//! They are honoured where their meaning is clear. A column of this name with something else is dropped and counted.

use std::sync::Arc;

use formats::chat_template::{ToolSignature, tool_instructions};
use serde_json::{Map, Value};

use crate::conversation::{MAX_TURNS, Turns, turns_of};
use crate::fields::{Fields, MAX_ROW_TOOLS, is_nothing};
use crate::tool_nulls::without_null_keywords;

/// The system prompt of a row.
pub(crate) fn system(fields: &Fields<'_>) -> Option<String> {
    let value = fields.get("system").filter(|value| !is_nothing(value))?;
    let Value::String(text) = value else {
        fields.drop_column("system");
        return None;
    };
    fields.honour("system");
    Some(text.clone())
}

/// The earlier turns of a row: a list of questions with their answers, or a list of messages.
pub(crate) fn history(fields: &Fields<'_>) -> Turns {
    let Some(value) = fields.get("history").filter(|value| !is_nothing(value)) else {
        return Turns::default();
    };
    let turns = match value {
        Value::Array(list) if list.iter().all(Value::is_object) => {
            turns_of(list, "history", fields).ok()
        }
        Value::Array(list) if list.len() <= MAX_TURNS / 2 => exchanges(list),
        _ => None,
    };
    match turns {
        Some(turns) => {
            fields.honour("history");
            turns
        }
        None => {
            fields.drop_column("history");
            Turns::default()
        }
    }
}

/// The turns of `[question, answer]` pairs.
fn exchanges(list: &[Value]) -> Option<Turns> {
    let mut turns = Turns::default();
    for exchange in list {
        let [Value::String(question), Value::String(answer)] = exchange.as_array()?.as_slice()
        else {
            return None;
        };
        turns.push("user", question.as_str());
        turns.push("assistant", answer.as_str());
    }
    Some(turns)
}

/// The instructions for the tools in `tools` or `functions`.
pub(crate) fn tools(fields: &Fields<'_>) -> Option<Arc<str>> {
    let name = ["tools", "functions"]
        .into_iter()
        .find(|name| fields.has(name))?;
    let column = fields.columns.column(name).unwrap_or(name);
    listed_tools(fields.get(name)?, column, fields)
}

/// The instructions for the tools in `value`: a list of functions, as it is or as JSON in a text; none if it is empty. Something else is dropped
/// and counted as `name`.
pub(crate) fn listed_tools(value: &Value, name: &str, fields: &Fields<'_>) -> Option<Arc<str>> {
    let parsed = match value {
        Value::String(text) if !is_nothing(value) => serde_json::from_str(text).ok(),
        value => Some(value.clone()),
    };
    if parsed.as_ref().is_some_and(is_nothing) {
        return None;
    }
    match parsed.as_ref().and_then(instructions_of) {
        Some(instructions) => {
            fields.honour("tools");
            Some(instructions.into())
        }
        None => {
            fields.drop_field(name);
            None
        }
    }
}

/// The instructions for a list of functions; `None` if it is something else.
fn instructions_of(tools: &Value) -> Option<String> {
    let tools = tools
        .as_array()
        .filter(|tools| tools.len() <= MAX_ROW_TOOLS)?;
    let function = |tool| -> Option<&Map<String, Value>> {
        let tool: &Map<String, Value> = Value::as_object(tool)?;
        match tool.get("function") {
            Some(function) => function.as_object(),
            None => Some(tool),
        }
    };
    let functions: Option<Vec<&Map<String, Value>>> = tools.iter().map(function).collect();
    let functions = functions?;
    let parameters: Vec<Option<Map<String, Value>>> = functions
        .iter()
        .map(|function| {
            Some(without_null_keywords(
                function.get("parameters")?.as_object()?,
            ))
        })
        .collect();
    let mut signatures = Vec::with_capacity(functions.len());
    for (function, parameters) in functions.iter().zip(&parameters) {
        signatures.push(ToolSignature {
            name: function.get("name")?.as_str()?,
            description: function.get("description").and_then(Value::as_str),
            parameters: parameters.as_ref(),
        });
    }
    Some(tool_instructions(signatures))
}
