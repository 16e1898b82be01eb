//! Tools that a model may call: how they are put in front of it, and how calls read.
//!
//! Every base is told of tools in the same words, whatever its chat template knows of them: those of Qwen 2.5's template, which
//! many models have been tuned on. A call reads alike in what a model is told, what it said earlier, and what it says, and
//! the answer's grammar keeps it to that.

use serde::Serialize;
use serde_json::{Map, Value, json};

use formats::chat_template::Message;

use crate::error::RequestError;
use crate::grammar::no_arguments;

/// The most tools of a request.
pub const MAX_TOOLS: usize = 128;
/// The longest name of a tool, in characters.
pub const MAX_TOOL_NAME: usize = 64;

/// What may be called, and when.
#[derive(Debug, Clone, PartialEq)]
pub struct Tools {
    /// The tools, at least one.
    pub tools: Vec<Tool>,
    /// Whether one must be called.
    pub choice: ToolChoice,
    /// Whether an answer may have several calls.
    pub parallel: bool,
}

/// Something that can be called.
#[derive(Debug, Clone, PartialEq)]
pub struct Tool {
    /// Letters, digits, `_` and `-`, at most [`MAX_TOOL_NAME`].
    pub name: String,
    /// What it does.
    pub description: Option<String>,
    /// The JSON schema of its arguments; without, it takes none.
    pub parameters: Option<Map<String, Value>>,
    /// Whether a keyword of the schema that is not known is an error.
    pub strict: bool,
}

/// Which tools an answer calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToolChoice {
    /// None; the model is not told of them.
    None,
    /// The model decides.
    Auto,
    /// One at least.
    Required,
    /// This one.
    Named(String),
}

/// A call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolCall {
    /// The tool's name.
    pub name: String,
    /// Its arguments as JSON; broken off where the answer was.
    pub arguments: String,
}

impl Tool {
    /// The schema of its arguments, which are an object.
    pub(super) fn arguments(&self) -> Value {
        let mut schema = self.parameters.clone().unwrap_or_else(no_arguments);
        let says = ["type", "$ref", "anyOf", "oneOf", "allOf"];
        if !says.iter().any(|key| schema.contains_key(*key)) {
            schema.insert("type".to_owned(), json!("object"));
        }
        Value::Object(schema)
    }
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
                    "{name:?} is no name of a tool; it has from 1 to {MAX_TOOL_NAME} letters, digits, _ and -"
                );
                return Err(refused(field, message));
            }
            if self.tools[..index]
                .iter()
                .any(|other| other.name == tool.name)
            {
                return Err(refused(field, format!("{name:?} stands there twice")));
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

    /// What the model is told of them, behind the system prompt.
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
            text += &spaced(&json!({"type": "function", "function": function}));
        }
        text += "\n</tools>\n\nFor each function call, return a json object with function name and arguments within \
             <tool_call></tool_call> XML tags:\n<tool_call>\n{\"name\": <function-name>, \"arguments\": \
             <args-json-object>}\n</tool_call>";
        Some(text)
    }
}

/// An assistant's turn as it was said: its text, then its calls.
pub fn said(text: &str, calls: &[ToolCall]) -> String {
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

/// The turns with those of the role `tool` as a template knows them: what the tools gave, in one turn of the user's.
pub(super) fn with_responses(turns: Vec<Message>) -> Vec<Message> {
    let mut told: Vec<Message> = Vec::with_capacity(turns.len());
    let mut in_responses = false;
    for turn in turns {
        if turn.role != "tool" {
            in_responses = false;
            told.push(turn);
            continue;
        }
        let response = format!("<tool_response>\n{}\n</tool_response>", turn.content);
        match told.last_mut().filter(|_| in_responses) {
            Some(before) => {
                before.content.push('\n');
                before.content += &response;
            }
            None => told.push(Message::new("user", response)),
        }
        in_responses = true;
    }
    told
}

/// JSON as Python's `json.dumps` writes it, which is what templates write.
pub fn spaced(value: &Value) -> String {
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
    fn instructions_are_those_of_the_template_that_models_know() {
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
    fn what_is_wrong_with_tools_is_named() {
        let refused = |tools: Tools| tools.check().unwrap_err().to_string();
        tools(&["a-1", "b_2"], ToolChoice::Named("b_2".to_owned()))
            .check()
            .unwrap();
        assert!(refused(tools(&[], ToolChoice::Auto)).starts_with("tools must have from 1 to 128"));
        for name in ["", "a b", "ü", "a\"", &"x".repeat(65)] {
            let said = refused(tools(&["ok", name], ToolChoice::Auto));
            assert!(said.starts_with("tools[1].function.name"), "{said}");
        }
        assert!(refused(tools(&["a", "a"], ToolChoice::Auto)).contains("twice"));
        let named = ToolChoice::Named("c".to_owned());
        assert!(refused(tools(&["a"], named)).starts_with("tool_choice names \"c\""));
    }

    #[test]
    fn responses_side_by_side_are_one_turn() {
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
        let told = with_responses(turns);
        let roles: Vec<&str> = told.iter().map(|turn| turn.role.as_str()).collect();
        assert_eq!(roles, ["user", "user", "assistant", "user"]);
        assert_eq!(
            told[1].content,
            "<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response>"
        );
    }
}
