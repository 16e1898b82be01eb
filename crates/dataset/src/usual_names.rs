//! Names that published data sets give to columns and turns: columns that are read as a field, and those that an error suggests for one.

use serde_json::{Map, Value};

use crate::field_report::shortened;

/// Words in the names of columns that probably hold an answer, the most probable first.
const ANSWER_WORDS: [&str; 9] = [
    "response",
    "answer",
    "output",
    "completion",
    "target",
    "reply",
    "solution",
    "assistant",
    "label",
];
/// Words in the names of columns that probably hold a question.
const QUESTION_WORDS: [&str; 8] = [
    "question",
    "instruction",
    "query",
    "prompt",
    "request",
    "input",
    "user",
    "human",
];
/// Words in the names of columns about an answer or a question.
const OTHER_WORDS: [&str; 12] = [
    "category", "id", "type", "score", "source", "model", "length", "rating", "count", "language",
    "context", "topic",
];
/// Longest name that is suggested, in characters.
const MAX_SUGGESTED_NAME: usize = 40;

/// The column that is read as `field` in a row without a column of this name, if the row is of a data set whose columns are known.
pub(crate) fn known_column(object: &Map<String, Value>, field: &str) -> Option<&'static str> {
    let has = |name| object.get(name).is_some_and(|value| !value.is_null());
    let is_text = |name| object.get(name).is_some_and(Value::is_string);
    let asks = || is_text("query") && is_text("response") && !has("instruction");
    match field {
        // Dolly.
        "output" if has("instruction") && is_text("response") => Some("response"),
        "input" if has("instruction") && is_text("context") => Some("context"),
        // MetaMath and ms-swift.
        "prompt" if asks() => Some("query"),
        "completion" if asks() => Some("response"),
        // LMSYS-Chat, WildChat and Capybara.
        "conversations" if holds_turns(object.get("conversation")?) => Some("conversation"),
        _ => None,
    }
}

/// Whether a value is a list of turns.
pub(crate) fn holds_turns(value: &Value) -> bool {
    let first = value.as_array().and_then(|list| list.first());
    first.is_some_and(|first| is_turn(first) || is_exchange(first))
}

/// Whether a value is a turn in one of the two spellings.
pub(crate) fn is_turn(value: &Value) -> bool {
    let has = |names: [&str; 2]| names.iter().all(|name| value.get(name).is_some());
    has(["role", "content"]) || has(["from", "value"])
}

/// Whether a value is a question with its answer, as Capybara writes conversations.
pub(crate) fn is_exchange(value: &Value) -> bool {
    let has = |name| value.get(name).is_some();
    has("input") && has("output") && !has("role") && !has("from")
}

/// The column among `names` that probably holds `field`.
pub(crate) fn probable_column<'n>(
    names: impl Iterator<Item = &'n String> + Clone,
    field: &str,
) -> Option<&'n String> {
    let wanted: &[&str] = match field {
        "output" | "completion" => &ANSWER_WORDS,
        "instruction" | "prompt" => &QUESTION_WORDS,
        _ => return None,
    };
    let has_word = |name: &String, word: &str| {
        let name = name.to_ascii_lowercase();
        name.split(|c: char| !c.is_alphabetic())
            .any(|part| part == word)
    };
    let shown = names.filter(|name| {
        let is_whole = name.chars().count() <= MAX_SUGGESTED_NAME && !name.contains(['\'', '"']);
        is_whole
            && !name.chars().any(char::is_control)
            && !OTHER_WORDS.iter().any(|word| has_word(name, word))
    });
    wanted
        .iter()
        .find_map(|word| shown.clone().find(|name| has_word(name, word)))
}

/// How `field` is mapped to `column`.
pub(crate) fn mapping(field: &str, column: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.');
    match column.chars().all(is_plain) {
        true => format!("{field}={}", shortened(column)),
        false => format!("{field}='{}'", shortened(column)),
    }
}
