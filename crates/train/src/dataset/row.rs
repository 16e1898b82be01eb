//! One line of a data file: recognises its shape and names the field that breaks it.

use formats::chat_template::Message;
use serde_json::{Map, Value};

use super::{Content, Place, Row};
use crate::error::TrainError;

pub(super) fn parse_row(text: &str, place: Place) -> Result<Row, TrainError> {
    let value: Value = serde_json::from_str(text).map_err(|error| {
        let said = error.to_string();
        let said = said.split(" at line ").next().unwrap_or_default();
        TrainError::row(
            &place,
            format!("not valid JSON at column {}: {said}", error.column()),
        )
    })?;
    let Value::Object(object) = value else {
        let message = format!(
            "a row must be a JSON object, this is {}; write one object a line",
            kind(&value)
        );
        return Err(TrainError::row(&place, message));
    };
    let content = parse_content(&object, &place)?;
    let intent = object
        .get("intent")
        .and_then(Value::as_str)
        .map(str::to_owned);
    Ok(Row {
        place,
        content,
        intent,
    })
}

fn parse_content(object: &Map<String, Value>, place: &Place) -> Result<Content, TrainError> {
    let has = |field: &str| object.contains_key(field);
    let text = |field: &str| required(object, field, place);
    // Complete shapes first, so that a stray column named `text` or `prompt` does not hide the one that was meant.
    if has("messages") {
        messages(&object["messages"], place).map(Content::Messages)
    } else if has("instruction") && has("output")
        || has("instruction") && !has("completion") && !has("text")
    {
        Ok(Content::Alpaca {
            instruction: text("instruction")?,
            input: optional(object, "input", place)?,
            output: text("output")?,
        })
    } else if has("prompt") && has("completion")
        || (has("prompt") || has("completion")) && !has("text")
    {
        Ok(Content::Completion {
            prompt: text("prompt")?,
            completion: text("completion")?,
        })
    } else if has("text") {
        text("text").map(Content::Text)
    } else {
        let fields: Vec<String> = object
            .keys()
            .take(8)
            .map(|key| format!("`{}`", shortened(key)))
            .collect();
        let found = if fields.is_empty() {
            "no fields".to_owned()
        } else {
            fields.join(", ")
        };
        let message = format!(
            "none of the known shapes: found {found}; a row holds `instruction` and `output` (and `input`), or \
             `messages`, or `prompt` and `completion`, or `text`"
        );
        Err(TrainError::row(place, message))
    }
}

fn messages(value: &Value, place: &Place) -> Result<Vec<Message>, TrainError> {
    let Value::Array(list) = value else {
        let message = format!(
            "must be a list of objects with `role` and `content`, this is {}",
            kind(value)
        );
        return Err(TrainError::field(place, "messages", message));
    };
    let mut turns: Vec<Message> = Vec::with_capacity(list.len());
    for (i, item) in list.iter().enumerate() {
        let at = |field: &str| format!("messages[{i}]{field}");
        let Value::Object(object) = item else {
            let message = format!(
                "must be an object with `role` and `content`, this is {}",
                kind(item)
            );
            return Err(TrainError::field(place, at(""), message));
        };
        let part = |field: &str| match object.get(field) {
            Some(Value::String(text)) => Ok(text.clone()),
            Some(other) => {
                let message = format!("must be a string, this is {}", kind(other));
                Err(TrainError::field(place, at(&format!(".{field}")), message))
            }
            None => Err(TrainError::field(
                place,
                at(&format!(".{field}")),
                "is missing",
            )),
        };
        let (role, content) = (part("role")?, part("content")?);
        let problem = match role.as_str() {
            "system" if i > 0 => {
                Some("a system message may stand only at the beginning".to_owned())
            }
            "system" | "user" => None,
            "assistant" if content.trim().is_empty() => {
                return Err(TrainError::field(
                    place,
                    at(".content"),
                    "the answer is empty",
                ));
            }
            "assistant" => None,
            other => Some(format!(
                "role `{}` is not supported; the roles are system, user and assistant",
                shortened(other)
            )),
        };
        if let Some(message) = problem {
            return Err(TrainError::field(place, at(".role"), message));
        }
        turns.push(Message { role, content });
    }
    match turns.last() {
        Some(last) if last.role == "assistant" => Ok(turns),
        Some(last) => {
            let message = format!(
                "the last message must be the assistant's answer, this is {}'s",
                last.role
            );
            Err(TrainError::field(place, "messages", message))
        }
        None => Err(TrainError::field(place, "messages", "the list is empty")),
    }
}

fn required(object: &Map<String, Value>, field: &str, place: &Place) -> Result<String, TrainError> {
    match object.get(field) {
        Some(Value::String(text)) if text.trim().is_empty() => {
            let message = if matches!(field, "output" | "completion") {
                "the answer is empty"
            } else {
                "is empty"
            };
            Err(TrainError::field(place, field, message))
        }
        Some(Value::String(text)) => Ok(text.clone()),
        Some(other) => Err(TrainError::field(
            place,
            field,
            format!("must be a string, this is {}", kind(other)),
        )),
        None => Err(TrainError::field(place, field, "is missing")),
    }
}

fn optional(object: &Map<String, Value>, field: &str, place: &Place) -> Result<String, TrainError> {
    match object.get(field) {
        None | Some(Value::Null) => Ok(String::new()),
        Some(Value::String(text)) => Ok(if text.trim().is_empty() {
            String::new()
        } else {
            text.clone()
        }),
        Some(other) => Err(TrainError::field(
            place,
            field,
            format!("must be a string or null, this is {}", kind(other)),
        )),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn shortened(text: &str) -> String {
    if text.chars().count() <= 40 {
        text.to_owned()
    } else {
        text.chars().take(40).chain("…".chars()).collect()
    }
}
