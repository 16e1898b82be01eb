//! Tools in a conversation: their instructions for the model, and the format of calls and responses.
//!
//! Every base gets the same instructions, whatever its chat template supports: those of Qwen 2.5's template, on which many models
//! were tuned. Calls have the same format in the instructions, in requests, in training rows, and in answers.

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::Message;

/// A call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolCall {
    /// The tool's name.
    pub name: String,
    /// Its arguments as JSON; truncated if the answer was.
    pub arguments: String,
}

/// A tool as its instructions describe it.
#[derive(Debug, Clone, Copy)]
pub struct ToolSignature<'a> {
    /// Its name.
    pub name: &'a str,
    /// What it does.
    pub description: Option<&'a str>,
    /// The JSON schema of its arguments.
    pub parameters: Option<&'a Map<String, Value>>,
}

/// The instructions for `tools`, which follow the system prompt.
pub fn tool_instructions<'a>(tools: impl IntoIterator<Item = ToolSignature<'a>>) -> String {
    let mut text = "# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided \
         with function signatures within <tools></tools> XML tags:\n<tools>"
        .to_owned();
    for tool in tools {
        let mut function = Map::new();
        function.insert("name".to_owned(), json!(tool.name));
        if let Some(description) = tool.description {
            function.insert("description".to_owned(), json!(description));
        }
        if let Some(parameters) = tool.parameters {
            function.insert("parameters".to_owned(), Value::Object(parameters.clone()));
        }
        text.push('\n');
        text += &python_json(&json!({"type": "function", "function": function}));
    }
    text += "\n</tools>\n\nFor each function call, return a json object with function name and arguments within \
         <tool_call></tool_call> XML tags:\n<tool_call>\n{\"name\": <function-name>, \"arguments\": \
         <args-json-object>}\n</tool_call>";
    text
}

/// `turns` with the instructions for tools behind the system prompt, or as the system prompt if there is none.
pub fn add_tool_instructions(turns: &mut Vec<Message>, instructions: &str) {
    match turns.first_mut().filter(|turn| turn.role == "system") {
        Some(system) => {
            system.content += "\n\n";
            system.content += instructions;
        }
        None => turns.insert(0, Message::new("system", instructions)),
    }
}

/// The text of an assistant's turn: its text, then its calls.
#[must_use]
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

/// The arguments of an earlier call as the model writes them: an object, or its JSON in a text. An empty text and null mean that there are none, as
/// other servers write them.
///
/// # Errors
/// Why they are not a JSON object.
pub fn call_arguments(arguments: Option<&Value>) -> Result<String, String> {
    let object = match arguments {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(object)) => object.clone(),
        Some(Value::String(json)) if json.trim().is_empty() => Map::new(),
        Some(Value::String(json)) => {
            serde_json::from_str(json).map_err(|error| format!("is not a JSON object: {error}"))?
        }
        Some(_) => return Err("is not a JSON object, or a text with its JSON".to_owned()),
    };
    Ok(python_json(&Value::Object(object)))
}

/// Turns of the role `tool` become turns of the user, which every template supports; neighbouring ones become one turn.
#[must_use]
pub fn merge_tool_responses(turns: Vec<Message>) -> Vec<Message> {
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
#[must_use]
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

    #[test]
    fn arguments_of_other_servers_are_read() {
        for (arguments, expected) in [
            (json!("{\"a\":[1,2]}"), "{\"a\": [1, 2]}"),
            (json!({"a": 1}), "{\"a\": 1}"),
            (json!(""), "{}"),
            (json!(" "), "{}"),
            (json!(null), "{}"),
        ] {
            assert_eq!(call_arguments(Some(&arguments)).unwrap(), expected);
        }
        assert_eq!(call_arguments(None).unwrap(), "{}");
        for arguments in [json!("{"), json!("[]"), json!(7)] {
            let error = call_arguments(Some(&arguments)).unwrap_err();
            assert!(error.starts_with("is not a JSON object"), "{error}");
        }
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
