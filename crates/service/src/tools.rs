//! Tools that a model may call: their instructions for the model, and the format of calls.
//!
//! Every base gets the same instructions, whatever its chat template supports: those of Qwen 2.5's template, on which many models
//! were tuned. Calls have the same format in the instructions, in earlier turns, and in the answer, where the grammar enforces
//! it.

use serde::Serialize;
use serde_json::{Map, Value, json};

use formats::chat_template::Message;

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

/// A call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolCall {
    /// The tool's name.
    pub name: String,
    /// Its arguments as JSON; truncated if the answer was.
    pub arguments: String,
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
        let mut text = "# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided \
             with function signatures within <tools></tools> XML tags:\n<tools>"
            .to_owned();
        for tool in &self.tools {
            let mut function = Map::new();
            function.insert("name".to_owned(), json!(tool.name));
            if let Some(description) = &tool.description {
                function.insert("description".to_owned(), json!(description));
            }
            if let Some(parameters) = &tool.parameters {
                function.insert("parameters".to_owned(), Value::Object(parameters.clone()));
            }
            text.push('\n');
            text += &python_json(&json!({"type": "function", "function": function}));
        }
        text += "\n</tools>\n\nFor each function call, return a json object with function name and arguments within \
             <tool_call></tool_call> XML tags:\n<tool_call>\n{\"name\": <function-name>, \"arguments\": \
             <args-json-object>}\n</tool_call>";
        Some(text)
    }
}

/// The text of an assistant's turn: its text, then its calls.
pub fn render_turn(text: &str, calls: &[ToolCall]) -> String {
    let mut turn = text.to_owned();
    for call in calls {
        if !turn.is_empty() {
            turn.push('\n');
        }
        let ToolCall { name, arguments } = call;
        turn += &format!(
            "<tool_call>\n{{\"name\": \"{name}\", \"arguments\": {arguments}}}\n</tool_call>"
        );
    }
    turn
}

/// Turns of the role `tool` become turns of the user, which every template supports; neighbouring ones become one turn.
pub(super) fn merge_tool_responses(turns: Vec<Message>) -> Vec<Message> {
    let mut merged: Vec<Message> = Vec::with_capacity(turns.len());
    let mut in_responses = false;
    for turn in turns {
        if turn.role != "tool" {
            in_responses = false;
            merged.push(turn);
            continue;
        }
        let response = format!("<tool_response>\n{}\n</tool_response>", turn.content);
        match merged.last_mut().filter(|_| in_responses) {
            Some(before) => {
                before.content.push('\n');
                before.content += &response;
            }
            None => merged.push(Message::new("user", response)),
        }
        in_responses = true;
    }
    merged
}

/// JSON in the style of Python's `json.dumps`, as templates write it.
pub fn python_json(value: &Value) -> String {
    struct Spaced;
    impl serde_json::ser::Formatter for Spaced {
        fn begin_array_value<W: std::io::Write + ?Sized>(
            &mut self,
            writer: &mut W,
            first: bool,
        ) -> std::io::Result<()> {
            writer.write_all(if first { b"" } else { b", " })
        }

        fn begin_object_key<W: std::io::Write + ?Sized>(
            &mut self,
            writer: &mut W,
            first: bool,
        ) -> std::io::Result<()> {
            writer.write_all(if first { b"" } else { b", " })
        }

        fn begin_object_value<W: std::io::Write + ?Sized>(
            &mut self,
            writer: &mut W,
        ) -> std::io::Result<()> {
            writer.write_all(b": ")
        }
    }
    let mut bytes = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, Spaced);
    // Writing a value into memory does not fail.
    let _ = value.serialize(&mut serializer);
    String::from_utf8_lossy(&bytes).into_owned()
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

    #[test]
    fn neighbouring_tool_responses_become_one_turn() {
        let turns = [
            ("user", "q"),
            ("tool", "1"),
            ("tool", "2"),
            ("assistant", "a"),
            ("tool", "3"),
        ];
        let turns = turns
            .map(|(role, content)| Message::new(role, content))
            .to_vec();
        let merged = merge_tool_responses(turns);
        let roles: Vec<&str> = merged.iter().map(|turn| turn.role.as_str()).collect();
        assert_eq!(roles, ["user", "user", "assistant", "user"]);
        assert_eq!(
            merged[1].content,
            "<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response>"
        );
    }
}
