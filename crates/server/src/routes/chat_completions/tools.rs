//! `tools`, `tool_choice`, `response_format` and earlier tool calls of a chat completion's request.

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::error::ApiError;
use service::{OutputFormat, Tool, ToolCall, ToolChoice, Tools, tools};

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ResponseFormat {
    #[serde(rename = "type")]
    kind: String,
    json_schema: Option<JsonSchema>,
}

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
struct JsonSchema {
    // A label; it changes nothing.
    #[serde(rename = "name")]
    _name: String,
    #[serde(rename = "description")]
    _description: Option<String>,
    schema: Option<Value>,
    strict: Option<bool>,
}

impl ResponseFormat {
    pub fn read(self) -> Result<OutputFormat, ApiError> {
        let missing = |field: &str| {
            let message = format!("{field} is missing");
            ApiError::bad_request("missing_field", message, Some(field.to_owned()))
        };
        if self.kind != "json_schema" && self.json_schema.is_some() {
            let message = "response_format.json_schema is only for the type json_schema";
            return Err(ApiError::unsupported(
                "response_format.json_schema",
                message,
            ));
        }
        match self.kind.as_str() {
            "text" => Ok(OutputFormat::Text),
            "json_object" => Ok(OutputFormat::JsonObject),
            "json_schema" => {
                let given = self.json_schema;
                let given = given.ok_or_else(|| missing("response_format.json_schema"))?;
                let schema = given.schema;
                let schema = schema.ok_or_else(|| missing("response_format.json_schema.schema"))?;
                Ok(OutputFormat::JsonSchema {
                    schema,
                    strict: given.strict == Some(true),
                })
            }
            other => {
                let other: String = other.chars().take(40).collect();
                let message = format!(
                    "response_format.type {other:?} is unknown; use text, json_object or json_schema"
                );
                Err(ApiError::unsupported("response_format.type", message))
            }
        }
    }
}

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ToolField {
    #[serde(rename = "type")]
    kind: String,
    function: Option<Function>,
}

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
struct Function {
    name: String,
    description: Option<String>,
    #[schema(value_type = Option<Object>)]
    parameters: Option<Map<String, Value>>,
    strict: Option<bool>,
}

/// `none`, `auto`, `required`, or a function by its name.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(
    untagged,
    expecting = "expected \"none\", \"auto\", \"required\" or {\"type\": \"function\", \"function\": {\"name\": ...}}"
)]
pub(super) enum ToolChoiceField {
    Word(String),
    Function(NamedTool),
}

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NamedTool {
    #[serde(rename = "type")]
    kind: String,
    function: NamedFunction,
}

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
struct NamedFunction {
    name: String,
}

/// The tools of a request, if it has any.
pub(super) fn tools(
    given: Option<Vec<ToolField>>,
    choice: Option<ToolChoiceField>,
    parallel: Option<bool>,
) -> Result<Option<Tools>, ApiError> {
    let unknown = |word: &str| {
        let word: String = word.chars().take(40).collect();
        let message = format!(
            "tool_choice {word:?} is unknown; use none, auto, required, or a function by its name"
        );
        ApiError::unsupported("tool_choice", message)
    };
    let choice = match choice {
        None => None,
        Some(ToolChoiceField::Word(word)) => Some(match word.as_str() {
            "none" => ToolChoice::None,
            "auto" => ToolChoice::Auto,
            "required" => ToolChoice::Required,
            word => return Err(unknown(word)),
        }),
        Some(ToolChoiceField::Function(named)) if named.kind == "function" => {
            Some(ToolChoice::Named(named.function.name))
        }
        Some(ToolChoiceField::Function(named)) => return Err(unknown(&named.kind)),
    };
    let given = given.unwrap_or_default();
    if given.is_empty() {
        return match choice {
            None | Some(ToolChoice::None | ToolChoice::Auto) => Ok(None),
            Some(ToolChoice::Required | ToolChoice::Named(_)) => {
                let message = "tool_choice requires a call, but tools is empty; give tools";
                Err(ApiError::unsupported("tool_choice", message))
            }
        };
    }
    let mut tools = Vec::with_capacity(given.len());
    for (index, tool) in given.into_iter().enumerate() {
        if tool.kind != "function" {
            let field = format!("tools[{index}].type");
            let kind: String = tool.kind.chars().take(40).collect();
            let message = format!("{field} {kind:?} is not supported; send \"function\"");
            return Err(ApiError::unsupported(&field, message));
        }
        let function = tool.function.ok_or_else(|| {
            let field = format!("tools[{index}].function");
            let message = format!("{field} is missing");
            ApiError::bad_request("missing_field", message, Some(field))
        })?;
        tools.push(Tool {
            name: function.name,
            description: function.description,
            parameters: function.parameters,
            strict: function.strict == Some(true),
        });
    }
    Ok(Some(Tools {
        tools,
        choice: choice.unwrap_or(ToolChoice::Auto),
        parallel: parallel != Some(false),
    }))
}

/// A call in an earlier message of the assistant. Other fields, such as its id, are ignored.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
pub(super) struct CalledTool {
    function: CalledFunction,
}

/// A function with its arguments: an object or its JSON. An empty text and null mean that there are none.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
pub(super) struct CalledFunction {
    name: String,
    arguments: Option<Value>,
}

impl CalledFunction {
    /// The call as the model writes it; `field` is its name in errors.
    fn read(self, field: &str) -> Result<ToolCall, ApiError> {
        let arguments = tools::call_arguments(self.arguments.as_ref()).map_err(|error| {
            let field = format!("{field}.arguments");
            let message = format!("{field} {error}");
            ApiError::bad_request("invalid_value", message, Some(field))
        })?;
        Ok(ToolCall {
            name: self.name,
            arguments,
        })
    }
}

/// The text and the calls of message number `message`, as the model wrote them.
pub(super) fn render_message(
    text: &str,
    calls: Vec<CalledTool>,
    older_call: Option<CalledFunction>,
    message: usize,
) -> Result<String, ApiError> {
    let mut rendered = Vec::with_capacity(calls.len());
    for (index, call) in calls.into_iter().enumerate() {
        let field = format!("messages[{message}].tool_calls[{index}].function");
        rendered.push(call.function.read(&field)?);
    }
    if let Some(call) = older_call {
        rendered.push(call.read(&format!("messages[{message}].function_call"))?);
    }
    Ok(tools::render_turn(text, &rendered))
}
