//! Nulls in tools and their calls. Data sets in Arrow or Parquet give every call the arguments of all calls, and every tool the keywords of all
//! tools, with null where there was none.

use serde_json::{Map, Value};

/// Keywords of a schema whose value may be null, or has values that are not schemas.
const VALUES: [&str; 4] = ["default", "const", "enum", "examples"];

/// The parameters of the function `name` in a list of tools.
pub(crate) fn parameters_of<'t>(tools: &'t [Value], name: &str) -> Option<&'t Map<String, Value>> {
    let mut functions = tools
        .iter()
        .map(|tool| tool.get("function").unwrap_or(tool));
    let is_named = |function: &&Value| function.get("name").and_then(Value::as_str) == Some(name);
    functions.find(is_named)?.get("parameters")?.as_object()
}

/// The arguments without nulls that a function with these parameters cannot have been given.
pub(crate) fn without_null_arguments(
    arguments: &Map<String, Value>,
    parameters: &Map<String, Value>,
) -> Map<String, Value> {
    let properties = parameters.get("properties").and_then(Value::as_object);
    let required = parameters.get("required").and_then(Value::as_array);
    let others = parameters.get("additionalProperties");
    let may_have_others = others.is_some_and(|others| others.is_object() || *others == true);
    let may_be_null = |name: &String| {
        let is_required = required.is_some_and(|names| names.iter().any(|other| other == name));
        let schema = properties.and_then(|properties| properties.get(name));
        match schema.filter(|schema| !schema.is_null()) {
            Some(schema) => is_required || allows_null(schema),
            None => is_required || may_have_others || properties.is_none(),
        }
    };
    let kept = arguments
        .iter()
        .filter(|(name, value)| !value.is_null() || may_be_null(name));
    kept.map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

/// Whether null may be a value of this schema. It may, unless its type is another one.
fn allows_null(schema: &Value) -> bool {
    let is_nullable = schema
        .get("nullable")
        .is_some_and(|nullable| *nullable == true);
    is_nullable
        || match schema.get("type") {
            Some(Value::String(kind)) => kind == "null",
            Some(Value::Array(kinds)) => kinds.iter().any(|kind| kind == "null"),
            _ => true,
        }
}

/// A schema without keywords and properties that are null.
pub(crate) fn without_null_keywords(schema: &Map<String, Value>) -> Map<String, Value> {
    let is_value = |name: &String| VALUES.contains(&name.as_str());
    let may_be_null = |name: &String| matches!(name.as_str(), "default" | "const");
    let kept = schema
        .iter()
        .filter(|(name, value)| !value.is_null() || may_be_null(name));
    let cleaned = kept.map(|(name, value)| {
        let value = match is_value(name) {
            true => value.clone(),
            false => without_nulls(value),
        };
        (name.clone(), value)
    });
    cleaned.collect()
}

fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(schema) => Value::Object(without_null_keywords(schema)),
        Value::Array(list) => list.iter().map(without_nulls).collect(),
        other => other.clone(),
    }
}
