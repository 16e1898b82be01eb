//! The turns of a conversation, in the spelling of chat APIs (`role`, `content`) or of ShareGPT (`from`, `value`).
//!
//! Tool calls and responses become text, as in requests. Marks ([`MARKS`]) of answers are kept next to the turns.

use formats::chat_template::{
    Message, ToolCall, call_arguments, merge_tool_responses, render_turn,
};
use serde_json::{Map, Value, json};

use crate::error::DatasetError;
use crate::field_report::shortened;
use crate::fields::{EMPTY_ANSWER, Fields, is_nothing, kind, text};
use crate::tool_nulls::{parameters_of, without_null_arguments};
use crate::usual_names::is_exchange;

/// Most turns of a conversation.
pub const MAX_TURNS: usize = 1000;

/// What a list of turns must have.
const SPELLINGS: &str = "`role` and `content`, or `from` and `value`";

/// Turns in Lory's roles (system, user, assistant), and the marks of their answers.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Turns {
    pub(crate) messages: Vec<Message>,
    /// For each message of the assistant, in order, whether a mark says that it is trained.
    pub(crate) marks: Vec<Option<bool>>,
}

impl Turns {
    /// One turn of `role` without a mark.
    pub(crate) fn of(role: &str, content: impl Into<String>) -> Turns {
        let mut turns = Turns::default();
        turns.push(role, content);
        turns
    }

    pub(crate) fn push(&mut self, role: &str, content: impl Into<String>) {
        self.messages.push(Message::new(role, content));
        if role == "assistant" {
            self.marks.push(None);
        }
    }

    pub(crate) fn append(&mut self, other: Turns) {
        self.messages.extend(other.messages);
        self.marks.extend(other.marks);
    }

    /// Cuts off the turns after the last answer that may be trained: neither mask uses them. False if there is no such answer.
    pub(crate) fn end_at_trained_answer(&mut self) -> bool {
        while self.marks.last() == Some(&Some(false)) {
            self.marks.pop();
            let is_answer = |message: &Message| message.role == "assistant";
            let last = self.messages.iter().rposition(is_answer);
            self.messages.truncate(last.unwrap_or(0));
        }
        let is_answer = |message: &Message| message.role == "assistant";
        let last = self.messages.iter().rposition(is_answer);
        self.messages.truncate(last.map_or(0, |last| last + 1));
        last.is_some()
    }
}

/// The turns in `field` up to the assistant's last answer. Later messages are counted and not used.
pub(crate) fn conversation(
    fields: &Fields<'_>,
    field: &'static str,
) -> Result<Turns, DatasetError> {
    let mut turns = turns(fields, field)?;
    let answers = |message: &Message| message.role == "assistant";
    let Some(last) = turns.messages.iter().rposition(answers) else {
        return Err(fields.error(
            field,
            "has no message of the assistant, so nothing to train",
        ));
    };
    if last + 1 < turns.messages.len() {
        fields.drop_field(&format!("{field} after the last answer"));
        turns.messages.truncate(last + 1);
    }
    Ok(turns)
}

/// The turns in `field`, a list that is not empty.
pub(crate) fn turns(fields: &Fields<'_>, field: &'static str) -> Result<Turns, DatasetError> {
    let value = fields.get(field);
    // A list may be written as JSON in a text, as exports of tables do.
    let parsed: Option<Vec<Value>> = value
        .and_then(Value::as_str)
        .and_then(|text| serde_json::from_str(text).ok());
    let list = match value {
        Some(Value::Array(list)) => list,
        Some(Value::String(_)) if parsed.is_some() => parsed.as_deref().unwrap_or_default(),
        other => {
            let message = format!(
                "must be a list of objects with {SPELLINGS}, this is {}",
                other.map_or("missing", kind)
            );
            return Err(fields.error(field, message));
        }
    };
    turns_of(list, field, fields)
}

/// The turns of `list`, which is the value of `field` or is in it.
pub(crate) fn turns_of(
    list: &[Value],
    field: &str,
    fields: &Fields<'_>,
) -> Result<Turns, DatasetError> {
    if list.is_empty() {
        return Err(fields.error(field, "the list is empty"));
    }
    if list.len() > MAX_TURNS {
        let message = format!("has {} turns; at most {MAX_TURNS} are read", list.len());
        return Err(fields.error(field, message));
    }
    let mut messages = Vec::with_capacity(list.len());
    let mut marks = Vec::new();
    for (i, item) in list.iter().enumerate() {
        if is_exchange(item) {
            let exchange = exchange(item, field, fields);
            messages.extend(exchange.map_err(|(part, message)| {
                fields.error_in(field, &format!("[{i}].{part}"), message)
            })?);
            marks.push(None);
            continue;
        }
        let turn = turn(item, field, fields);
        let (message, mark) = turn
            .map_err(|(part, message)| fields.error_in(field, &format!("[{i}]{part}"), message))?;
        if message.role == "assistant" {
            marks.push(mark);
        }
        messages.push(message);
    }
    if messages.len() > MAX_TURNS {
        let message = format!("has {} turns; at most {MAX_TURNS} are read", messages.len());
        return Err(fields.error(field, message));
    }
    // Responses become turns of the user, so the order of the answers stays.
    let messages = merge_tool_responses(messages);
    Ok(Turns { messages, marks })
}

/// The two turns of an exchange. The error is the name of the invalid field, and a message.
fn exchange(
    item: &Value,
    field: &str,
    fields: &Fields<'_>,
) -> Result<[Message; 2], (&'static str, String)> {
    let names = ["input", "output"];
    let [asked, answered] = names.map(|name| {
        let written = text(item.get(name).unwrap_or(&Value::Null), "a string");
        written.map_err(|message| (name, message))
    });
    let (asked, answered) = (asked?, answered?);
    if answered.trim().is_empty() {
        return Err(("output", EMPTY_ANSWER.to_owned()));
    }
    for (key, value) in item.as_object().into_iter().flatten() {
        if !names.contains(&key.as_str()) && !is_nothing(value) {
            fields.drop_field(&format!("{field}.{key}"));
        }
    }
    Ok([
        Message::new("user", asked),
        Message::new("assistant", answered),
    ])
}

/// Reads a turn and its mark. The error is the path of the invalid field below the turn, and a message.
pub(crate) fn turn(
    item: &Value,
    field: &str,
    fields: &Fields<'_>,
) -> Result<(Message, Option<bool>), (String, String)> {
    let Value::Object(object) = item else {
        let message = format!("must be an object with {SPELLINGS}, this is {}", kind(item));
        return Err((String::new(), message));
    };
    let other_spelling = object.contains_key("from") && !object.contains_key("role");
    let (role, content) = if other_spelling {
        ("from", "value")
    } else {
        ("role", "content")
    };
    let at = |name: &str, message: String| Err((format!(".{name}"), message));
    let Some(role_name) = object.get(role) else {
        return at(role, "is missing".to_owned());
    };
    let role_name = match text(role_name, "a string") {
        Ok(role_name) => role_name,
        Err(message) => return at(role, message),
    };
    let speaker = match speaker(role_name) {
        Ok(speaker) => speaker,
        Err(message) => return at(role, message),
    };
    let calls = match speaker {
        "assistant" => calls(object, fields)?,
        _ => Vec::new(),
    };
    let mut written = match object.get(content) {
        None | Some(Value::Null) if !calls.is_empty() => String::new(),
        None => return at(content, "is missing".to_owned()),
        Some(value) => match content_text(value) {
            Ok(written) => written,
            Err(message) => return at(content, message),
        },
    };
    let is_call = matches!(role_name, "function_call" | "tool_call");
    if is_call {
        // ShareGPT and ms-swift with tools: the text is the call, or a list of calls.
        written = match calls_of_text(&written) {
            Some(calls) => render_turn("", &calls),
            None => {
                let message = "must be a call {\"name\", \"arguments\"} in JSON, or a list of them";
                return at(content, message.to_owned());
            }
        };
    }
    if !calls.is_empty() || is_call {
        fields.honour("tool_calls");
    }
    if speaker == "assistant" && written.trim().is_empty() && calls.is_empty() {
        return at(content, EMPTY_ANSWER.to_owned());
    }
    let mark = mark(object, speaker == "assistant", field, fields);
    count_unused(object, [role, content], speaker, field, fields);
    Ok((Message::new(speaker, render_turn(&written, &calls)), mark))
}

/// Lory's role, or `tool`, of a turn with this role. The error is a message.
fn speaker(role: &str) -> Result<&'static str, String> {
    match role {
        "system" | "developer" => Ok("system"),
        "user" | "human" => Ok("user"),
        "assistant" | "gpt" | "model" | "function_call" | "tool_call" => Ok("assistant"),
        "tool" | "function" | "observation" | "tool_response" => Ok("tool"),
        other => Err(format!(
            "role `{}` is not supported; the roles are system, user (or human), assistant (or gpt) and tool (or observation)",
            shortened(other)
        )),
    }
}

/// Counts the keys of a message that training does not use.
fn count_unused(
    object: &Map<String, Value>,
    spelling: [&str; 2],
    speaker: &str,
    field: &str,
    fields: &Fields<'_>,
) {
    for (key, value) in object {
        let is_call =
            speaker == "assistant" && matches!(key.as_str(), "tool_calls" | "function_call");
        let is_used = spelling.contains(&key.as_str())
            || key == "tool_call_id"
            || MARKS.iter().any(|mark| key == mark.name);
        if !is_used && !is_call && !is_nothing(value) {
            fields.drop_field(&format!("{field}.{key}"));
        }
    }
}

/// A text, or the texts of a list of parts of the type `text`.
fn content_text(value: &Value) -> Result<String, String> {
    let Value::Array(parts) = value else {
        return text(value, "a string or a list of text parts").map(str::to_owned);
    };
    if parts.is_empty() {
        return text(value, "a string or a list of text parts").map(str::to_owned);
    }
    let mut whole = String::new();
    for part in parts {
        let kind = part.get("type").and_then(Value::as_str);
        match (kind, part.get("text")) {
            (Some("text") | None, Some(part)) => whole += text(part, "a string")?,
            (kind, _) => {
                let kind = shortened(kind.unwrap_or("unknown"));
                return Err(format!(
                    "a part of type `{kind}` is not supported; the parts are texts"
                ));
            }
        }
    }
    Ok(whole)
}

/// A key of a message that says whether its answer is trained.
pub(crate) struct Mark {
    pub(crate) name: &'static str,
    /// Whether 1 or true means that it is not.
    negated: bool,
}

impl Mark {
    const fn of(name: &'static str) -> Mark {
        let negated = false;
        Mark { name, negated }
    }
}

/// OpenAI's `weight`; `train` and `training` of Axolotl; `loss`, `loss_weight` and `loss_scale` of ms-swift and XTuner; `masked` of torchtune.
pub(crate) const MARKS: [Mark; 7] = [
    Mark::of("weight"),
    Mark::of("train"),
    Mark::of("training"),
    Mark::of("loss"),
    Mark::of("loss_weight"),
    Mark::of("loss_scale"),
    Mark {
        name: "masked",
        negated: true,
    },
];

/// What the marks of a message say about training it. Marks of other messages than answers, and other values, change nothing.
fn mark(
    object: &Map<String, Value>,
    is_answer: bool,
    field: &str,
    fields: &Fields<'_>,
) -> Option<bool> {
    let mut trained = None;
    for Mark { name, negated } in MARKS {
        let value = object.get(name).filter(|value| !value.is_null());
        let Some(value) = value else {
            continue;
        };
        let on = match value {
            Value::Bool(on) => Some(*on),
            Value::Number(number) if number.as_f64() == Some(0.0) => Some(false),
            Value::Number(number) if number.as_f64() == Some(1.0) => Some(true),
            _ => None,
        };
        match on {
            Some(on) if is_answer => {
                fields.honour(name);
                trained = Some(on != negated && trained != Some(false));
            }
            // No other message is trained anyway.
            Some(on) if on == negated => {}
            _ => fields.drop_field(&format!("{field}.{name}")),
        }
    }
    trained
}

/// The calls in `tool_calls` and `function_call` of an assistant's message.
fn calls(
    object: &Map<String, Value>,
    fields: &Fields<'_>,
) -> Result<Vec<ToolCall>, (String, String)> {
    let mut calls = Vec::new();
    match object.get("tool_calls") {
        None | Some(Value::Null) => {}
        Some(Value::Array(list)) => {
            for (i, item) in list.iter().enumerate() {
                let (path, called) = match item.get("function") {
                    Some(called) => (format!(".tool_calls[{i}].function"), called),
                    None => (format!(".tool_calls[{i}]"), item),
                };
                let call = filled_call(called, fields);
                calls.push(call.map_err(|(part, message)| (path + part, message))?);
            }
        }
        Some(other) => {
            let message = format!("must be a list of calls, this is {}", kind(other));
            return Err((".tool_calls".to_owned(), message));
        }
    }
    match object.get("function_call") {
        None | Some(Value::Null) => {}
        Some(called) => {
            let call = filled_call(called, fields);
            calls.push(call.map_err(|(part, message)| (format!(".function_call{part}"), message))?);
        }
    }
    Ok(calls)
}

/// A call whose arguments may have nulls that nobody wrote.
fn filled_call(called: &Value, fields: &Fields<'_>) -> Result<ToolCall, (&'static str, String)> {
    let has_null = |arguments: &&Map<String, Value>| arguments.values().any(Value::is_null);
    let filled = called.get("arguments").and_then(Value::as_object);
    let Some(filled) = filled.filter(has_null) else {
        return call(called);
    };
    fields.honour("tool_calls: null arguments");
    let name = called.get("name").and_then(Value::as_str);
    match name.and_then(|name| parameters_of(fields.tools(), name)) {
        Some(parameters) => {
            let arguments = without_null_arguments(filled, parameters);
            call(&json!({"name": name, "arguments": arguments}))
        }
        None => call(called),
    }
}

/// A call as the model writes it. The error is the path below the call, and a message.
fn call(called: &Value) -> Result<ToolCall, (&'static str, String)> {
    let name = called
        .get("name")
        .ok_or((".name", "is missing".to_owned()))?;
    let name = text(name, "a string").map_err(|message| (".name", message))?;
    let arguments = call_arguments(called.get("arguments"));
    Ok(ToolCall {
        name: name.to_owned(),
        arguments: arguments.map_err(|message| (".arguments", message))?,
    })
}

/// The calls that a text spells in JSON.
fn calls_of_text(text: &str) -> Option<Vec<ToolCall>> {
    let value: Value = serde_json::from_str(text).ok()?;
    let list = match &value {
        Value::Array(list) => list.as_slice(),
        one => std::slice::from_ref(one),
    };
    let calls: Option<Vec<ToolCall>> = list.iter().map(|called| call(called).ok()).collect();
    calls.filter(|calls| !calls.is_empty())
}
