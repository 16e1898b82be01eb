//! Tools that a model may call, and which of them a request allows. `formats::chat_template` writes their instructions and calls, as for
//! training rows; the grammar of the answer enforces the same format.

use serde_json::{Map, Value, json};

pub use formats::chat_template::{
    ToolCall, call_arguments, merge_tool_responses, python_json, render_turn,
};
use formats::chat_template::{ToolSignature, tool_instructions};

use crate::error::RequestError;

/// The most tools of a request.
pub const MAX_TOOLS: usize = 128;
/// The longest name of a tool, in characters.
pub const MAX_TOOL_NAME: usize = 64;

/// The tools of a request.
#[derive(Debug, Clone, PartialEq)]
pub struct Tools {
    /// The tools, at least one.
    pub tools: Vec<Tool>,
    /// Whether one must be called.
    pub choice: ToolChoice,
    /// Whether an answer may have several calls.
    pub parallel: bool,
}

/// A tool.
#[derive(Debug, Clone, PartialEq)]
pub struct Tool {
    /// Letters, digits, `_` and `-`, at most [`MAX_TOOL_NAME`].
    pub name: String,
    /// What it does.
    pub description: Option<String>,
    /// The JSON schema of its arguments; `None` if it takes no arguments.
    pub parameters: Option<Map<String, Value>>,
    /// Whether an unknown keyword of the schema is an error.
    pub strict: bool,
}

/// Which tools an answer calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToolChoice {
    /// None; the prompt does not mention the tools.
    None,
    /// The model decides.
    Auto,
    /// At least one.
    Required,
    /// This one.
    Named(String),
}

impl Tool {
    /// The schema of its arguments, which are an object.
    pub(super) fn arguments(&self) -> Value {
        let mut schema = self.parameters.clone().unwrap_or_else(no_arguments);
        let type_keywords = ["type", "$ref", "anyOf", "oneOf", "allOf"];
        if !type_keywords.iter().any(|key| schema.contains_key(*key)) {
            schema.insert("type".to_owned(), json!("object"));
        }
        Value::Object(schema)
    }
}

/// The schema of no arguments.
fn no_arguments() -> Map<String, Value> {
    let mut schema = Map::new();
    schema.insert("type".to_owned(), json!("object"));
    schema.insert("properties".to_owned(), json!({}));
    schema.insert("additionalProperties".to_owned(), json!(false));
    schema
}

impl Tools {
    pub(super) fn check(&self) -> Result<(), RequestError> {
        let refused = |field: String, message: String| RequestError::Tool { field, message };
        if self.tools.is_empty() || self.tools.len() > MAX_TOOLS {
            let message = format!(
                "must have from 1 to {MAX_TOOLS} tools, not {}",
                self.tools.len()
            );
            return Err(refused("tools".to_owned(), message));
        }
        for (index, tool) in self.tools.iter().enumerate() {
            let field = format!("tools[{index}].function.name");
            let name: String = tool.name.chars().take(MAX_TOOL_NAME + 1).collect();
            let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
            if name.is_empty() || name.len() > MAX_TOOL_NAME || !name.chars().all(plain) {
                let message = format!(
                    "{name:?} is not a valid name of a tool; a name has from 1 to {MAX_TOOL_NAME} letters, digits, _ and -"
                );
                return Err(refused(field, message));
            }
            if self.tools[..index]
                .iter()
                .any(|other| other.name == tool.name)
            {
                return Err(refused(field, format!("{name:?} is given twice")));
            }
        }
        match &self.choice {
            ToolChoice::Named(name) if !self.tools.iter().any(|tool| tool.name == *name) => {
                let name: String = name.chars().take(MAX_TOOL_NAME).collect();
                let message = format!("names {name:?}, which is not among the tools");
                Err(refused("tool_choice".to_owned(), message))
            }
            _ => Ok(()),
        }
    }

    /// The instructions that follow the system prompt; none if no tool may be called.
    pub(super) fn instructions(&self) -> Option<String> {
        if self.choice == ToolChoice::None {
            return None;
        }
        Some(tool_instructions(self.tools.iter().map(|tool| {
            ToolSignature {
                name: &tool.name,
                description: tool.description.as_deref(),
                parameters: tool.parameters.as_ref(),
            }
        })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tools(names: &[&str], choice: ToolChoice) -> Tools {
        let tool = |name: &&str| Tool {
            name: (*name).to_owned(),
            description: Some("Says \"it\".".to_owned()),
            parameters: json!({"properties": {"x": {"type": "integer"}}})
                .as_object()
                .cloned(),
            strict: false,
        };
        Tools {
            tools: names.iter().map(tool).collect(),
            choice,
            parallel: true,
        }
    }

    #[test]
    fn instructions_are_those_of_the_qwen_template() {
        let text = tools(&["a", "b"], ToolChoice::Auto).instructions().unwrap();
        let line = |name: &str| {
            format!(
                "{{\"type\": \"function\", \"function\": {{\"name\": \"{name}\", \"description\": \"Says \\\"it\\\".\", \
                 \"parameters\": {{\"properties\": {{\"x\": {{\"type\": \"integer\"}}}}}}}}}}\n"
            )
        };
        assert!(
            text.contains(&format!("<tools>\n{}{}</tools>", line("a"), line("b"))),
            "{text}"
        );
        assert_eq!(tools(&["a"], ToolChoice::None).instructions(), None);
    }

    #[test]
    fn invalid_tools_are_rejected_by_field() {
        let refused = |tools: Tools| tools.check().unwrap_err().to_string();
        tools(&["a-1", "b_2"], ToolChoice::Named("b_2".to_owned()))
            .check()
            .unwrap();
        assert!(refused(tools(&[], ToolChoice::Auto)).starts_with("tools must have from 1 to 128"));
        for name in ["", "a b", "ü", "a\"", &"x".repeat(65)] {
            let message = refused(tools(&["ok", name], ToolChoice::Auto));
            assert!(message.starts_with("tools[1].function.name"), "{message}");
        }
        assert!(refused(tools(&["a", "a"], ToolChoice::Auto)).contains("given twice"));
        let named = ToolChoice::Named("c".to_owned());
        assert!(refused(tools(&["a"], named)).starts_with("tool_choice names \"c\""));
    }
}
