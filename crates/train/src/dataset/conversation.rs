//! The turns of a conversation, in the spelling of chat APIs (`role`, `content`) or of ShareGPT (`from`, `value`).

use formats::chat_template::Message;
use serde_json::{Map, Value};

use super::fields::{EMPTY_ANSWER, Fields, kind, shortened, text};
use crate::error::TrainError;

/// Most turns of a conversation.
pub const MAX_TURNS: usize = 1000;

/// The turns in `field`, in Lory's roles.
pub(super) fn turns(fields: &Fields<'_>, field: &str) -> Result<Vec<Message>, TrainError> {
    let list = match fields.get(field) {
        Some(Value::Array(list)) => list,
        other => {
            let message = format!(
                "must be a list of objects with `role` and `content`, or `from` and `value`, this is {}",
                other.map_or("missing", kind)
            );
            return Err(fields.error(field, message));
        }
    };
    if list.len() > MAX_TURNS {
        let message = format!("has {} turns; at most {MAX_TURNS} are read", list.len());
        return Err(fields.error(field, message));
    }
    let mut turns = Vec::with_capacity(list.len());
    for (i, item) in list.iter().enumerate() {
        let turn = turn(item, i);
        turns.push(turn.map_err(|(part, message)| fields.error_in(field, &part, message))?);
    }
    match turns.last() {
        Some(last) if last.role == "assistant" => Ok(turns),
        Some(last) => {
            let message = format!(
                "the last message must be the assistant's answer, this is {}'s",
                last.role
            );
            Err(fields.error(field, message))
        }
        None => Err(fields.error(field, "the list is empty")),
    }
}

/// Reads turn `i`. The error is the path of the invalid field below the list, and a message.
fn turn(item: &Value, i: usize) -> Result<Message, (String, String)> {
    let Value::Object(object) = item else {
        let message = format!(
            "must be an object with `role` and `content`, or `from` and `value`, this is {}",
            kind(item)
        );
        return Err((format!("[{i}]"), message));
    };
    let other_spelling = object.contains_key("from") && !object.contains_key("role");
    let (role, content) = if other_spelling {
        ("from", "value")
    } else {
        ("role", "content")
    };
    let role_name = part(object, role, i)?;
    let at = |name: &str, message: String| Err((format!("[{i}].{name}"), message));
    let speaker = match role_name {
        "system" if i > 0 => {
            let message = "a system message is only allowed as the first message";
            return at(role, message.to_owned());
        }
        "system" => "system",
        "user" | "human" => "user",
        "assistant" | "gpt" => "assistant",
        other => {
            let message = format!(
                "role `{}` is not supported; the roles are system, user (or human) and assistant (or gpt)",
                shortened(other)
            );
            return at(role, message);
        }
    };
    let text = part(object, content, i)?;
    if speaker == "assistant" && text.trim().is_empty() {
        return at(content, EMPTY_ANSWER.to_owned());
    }
    Ok(Message::new(speaker, text))
}

fn part<'v>(
    object: &'v Map<String, Value>,
    name: &str,
    i: usize,
) -> Result<&'v str, (String, String)> {
    let value = object.get(name).ok_or_else(|| "is missing".to_owned());
    let part = value.and_then(|value| text(value, "a string"));
    part.map_err(|message| (format!("[{i}].{name}"), message))
}
