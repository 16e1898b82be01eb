//! A row with two answers to one question, of which the first is preferred.
//!
//! The question is a text or a list of messages, an instruction, or the messages that both answers begin with.

use formats::chat_template::{Message, alpaca_prompt};
use serde_json::{Map, Value};

use crate::context;
use crate::conversation::{MAX_TURNS, Turns, turn, turns_of};
use crate::error::DatasetError;
use crate::field_report::FieldReport;
use crate::fields::{EMPTY_ANSWER, Fields, text};
use crate::row::intent;
use crate::{Columns, DataRow, RowContent, RowLocation};

/// Names of the chosen and the rejected answer: in most data sets, and in OpenAI's, whose prompt is `input.messages`.
const ANSWERS: [[&str; 2]; 2] = [
    ["chosen", "rejected"],
    ["preferred_output", "non_preferred_output"],
];
/// Names in data of ms-swift for a rejected answer, and for the chosen one, which may also be the last of `messages`.
const REJECTED: &str = "rejected_response";
const SWIFT: [&str; 2] = ["response", "messages"];
/// Names of a question that is a text or a list of messages.
const QUESTIONS: [&str; 4] = ["messages", "conversations", "prompt", "question"];

/// Whether a row has two answers.
pub(crate) fn is_pair(object: &Map<String, Value>, columns: &Columns) -> bool {
    let has = |name: &&str| {
        let column = columns.column(name);
        column
            .and_then(|column| object.get(column))
            .is_some_and(|value| !value.is_null())
    };
    let [preferred, _] = SWIFT;
    ANSWERS.iter().any(|names| names.iter().all(has))
        || has(&REJECTED) && (has(&preferred) || has(&"messages"))
}

/// Reads a row with two answers: the row with the chosen one, and the row with the rejected one.
pub(crate) fn parse_pair(
    object: &Map<String, Value>,
    location: &RowLocation,
    columns: &Columns,
    report: &mut FieldReport,
) -> Result<[DataRow; 2], DatasetError> {
    let fields = Fields::new(object, columns, location);
    let [_, openai] = ANSWERS;
    let names = answer_names(&fields);
    let [chosen, rejected] = names.map(|name| answer(&fields, name));
    let (mut chosen, rejected) = (chosen?, rejected?);
    if names[0] == "messages" {
        if chosen.last().is_none_or(|turn| turn.role != "assistant") {
            let message = "must end with the answer to prefer to `rejected_response`";
            return Err(fields.error("messages", message));
        }
        // What comes before it is the question, as in a row with both.
        chosen.drain(..chosen.len() - 1);
    }
    let question = match names == openai {
        true => openai_question(&fields)?,
        false => plain_question(&fields, &chosen, &rejected)?,
    };
    let question = after_context(question, &fields);
    let (prompt, skipped) = split(question, &chosen, &rejected, names, &fields)?;
    let tools = openai_tools(&fields).or_else(|| context::tools(&fields));
    let intent = intent(&fields);
    let answered = |answer: &[Message], name| -> Result<DataRow, DatasetError> {
        Ok(DataRow {
            location: location.clone(),
            content: RowContent::Messages(answered(&prompt, answer, name, &fields)?),
            intent: intent.clone(),
            marks: Vec::new(),
            tools: tools.clone(),
        })
    };
    let pair = [
        answered(&chosen[skipped..], names[0])?,
        answered(&rejected[skipped..], names[1])?,
    ];
    fields.report(report);
    Ok(pair)
}

/// The columns of the chosen and of the rejected answer.
fn answer_names(fields: &Fields<'_>) -> [&'static str; 2] {
    let [plain, openai] = ANSWERS;
    if fields.has(openai[0]) {
        openai
    } else if fields.has(plain[0]) || !fields.has(REJECTED) {
        plain
    } else {
        let chosen = SWIFT.into_iter().find(|name| fields.has(name));
        [chosen.unwrap_or("response"), REJECTED]
    }
}

/// The field that holds the question, and its turns with the system prompt and the history of the row; no turns if the row has no such
/// field.
struct Question {
    field: &'static str,
    turns: Vec<Message>,
    /// How many of the turns are the row's system prompt and history.
    before: usize,
}

/// A field, and its turns.
type Asked = (&'static str, Vec<Message>);

/// The question in `input.messages`.
fn openai_question(fields: &Fields<'_>) -> Result<Asked, DatasetError> {
    let input = fields.get("input").and_then(|input| input.get("messages"));
    let asked = input.filter(|value| !value.is_null());
    let asked = asked.map(|value| messages(value, "input.messages", "user", fields));
    let asked = asked.transpose()?.unwrap_or_default();
    Ok(("input.messages", asked.messages))
}

/// The question in a field of its own. A conversation that repeats an answer is not the question, and is counted.
fn plain_question(
    fields: &Fields<'_>,
    chosen: &[Message],
    rejected: &[Message],
) -> Result<Asked, DatasetError> {
    for field in QUESTIONS {
        if field == "conversations" && fields.is_under_other_name(field) {
            continue;
        }
        let Some(value) = fields.get(field) else {
            continue;
        };
        let mut asked = messages(value, field, "user", fields)?.messages;
        if is_conversation(&asked) {
            if is_conversation(chosen) && is_conversation(rejected) {
                fields.drop_column(field);
                continue;
            }
            let answer = asked.last();
            if [chosen, rejected]
                .iter()
                .any(|turns| turns.len() == 1 && turns.last() == answer)
            {
                asked.pop();
            }
        }
        return Ok((field, asked));
    }
    if !fields.has("instruction") {
        return Ok(("prompt", Vec::new()));
    }
    let instruction = fields.required("instruction")?;
    let asked = alpaca_prompt(&instruction, &fields.optional("input")?);
    Ok(("instruction", vec![Message::new("user", asked)]))
}

/// Whether `turns` have a question and end with an answer.
fn is_conversation(turns: &[Message]) -> bool {
    let has_question = turns.iter().any(|turn| turn.role == "user");
    has_question && turns.last().is_some_and(|turn| turn.role == "assistant")
}

/// The question after the row's system prompt and history, unless it begins with a system prompt.
fn after_context((field, asked): Asked, fields: &Fields<'_>) -> Question {
    let opens = asked.first().is_some_and(|turn| turn.role == "system");
    let mut turns = Vec::new();
    if !opens {
        turns.extend(context::system(fields).map(|system| Message::new("system", system)));
        let history = context::history(fields).messages;
        let is_system = |turn: &Message| turn.role == "system";
        let starts = usize::from(!turns.is_empty() && history.first().is_some_and(is_system));
        turns.extend(history.into_iter().skip(starts));
    }
    let before = turns.len();
    turns.extend(asked);
    Question {
        field,
        turns,
        before,
    }
}

/// The tools in `input.tools` of OpenAI's rows.
fn openai_tools(fields: &Fields<'_>) -> Option<std::sync::Arc<str>> {
    let tools = fields.peek("input")?.get("tools")?;
    context::listed_tools(tools, "input.tools", fields)
}

/// The turns of the prompt, and how many turns of both answers belong to it.
fn split(
    question: Question,
    chosen: &[Message],
    rejected: &[Message],
    names: [&'static str; 2],
    fields: &Fields<'_>,
) -> Result<(Vec<Message>, usize), DatasetError> {
    let alike = chosen.iter().zip(rejected).take_while(|(a, b)| a == b);
    let common = alike.count().min(chosen.len() - 1).min(rejected.len() - 1);
    let Question {
        field,
        mut turns,
        before,
    } = question;
    let asked = &turns[before..];
    let same = |a: &Message, b: &Message| a.role == b.role && a.content.trim() == b.content.trim();
    let contains = |turns: &[Message]| match asked {
        [only] => turns.iter().any(|turn| same(turn, only)),
        all => turns.len() >= all.len() && turns.iter().zip(all).all(|(a, b)| same(a, b)),
    };
    // Both answers may be whole conversations, which repeat the prompt.
    let repeated = match asked.is_empty() || contains(&chosen[..common]) {
        true => common,
        false => 0,
    };
    if repeated > 0 || asked.is_empty() {
        turns.truncate(before);
        let is_system = |turn: &Message| turn.role == "system";
        if chosen.first().is_some_and(is_system) && turns.first().is_some_and(is_system) {
            turns.remove(0);
        }
        turns.extend_from_slice(&chosen[..repeated]);
    }
    match turns.last() {
        None => {
            let [chosen, rejected] = names;
            let message = format!(
                "is missing, and `{chosen}` and `{rejected}` do not begin with the same messages"
            );
            Err(fields.error(field, message))
        }
        Some(last) if last.role == "assistant" => {
            let message = "must end with the user's turn, which both answers are about";
            Err(fields.error(field, message))
        }
        Some(_) if !turns.iter().any(|turn| turn.role == "user") => {
            let [chosen, rejected] = names;
            let message = format!(
                "is missing, so the pair has no turn of the user: put the question into `prompt`, `question`, `instruction` or `messages`, \
                 or into both `{chosen}` and `{rejected}`"
            );
            Err(fields.error(field, message))
        }
        Some(_) => Ok((turns, repeated)),
    }
}

/// The conversation of `prompt` and `answer`, which must be one message of the assistant. `field` is the answer's name in errors.
fn answered(
    prompt: &[Message],
    answer: &[Message],
    field: &'static str,
    fields: &Fields<'_>,
) -> Result<Vec<Message>, DatasetError> {
    match answer {
        [answer] if answer.role == "assistant" => {
            let mut turns = prompt.to_vec();
            turns.push(answer.clone());
            Ok(turns)
        }
        _ => {
            let roles: Vec<&str> = answer.iter().map(|m| m.role.as_str()).collect();
            let message = format!(
                "must be one assistant's answer to the prompt, this is {} messages of the roles {}",
                answer.len(),
                roles.join(", ")
            );
            Err(fields.error(field, message))
        }
    }
}

/// The turns of an answer.
fn answer(fields: &Fields<'_>, name: &'static str) -> Result<Vec<Message>, DatasetError> {
    let Some(value) = fields.get(name) else {
        let message = "is missing; a preference row has both `chosen` and `rejected`";
        return Err(fields.error(name, message));
    };
    let turns = messages(value, name, "assistant", fields)?;
    if turns.marks.iter().any(Option::is_some) {
        // Both answers of a pair are trained, whatever their weights.
        fields.drop_field(&format!("{name}.weight"));
    }
    Ok(turns.messages)
}

/// The turns of a text that marks them by `Human:` and `Assistant:` after an empty line, as Anthropic's HH-RLHF does.
fn transcript(text: &str) -> Option<Turns> {
    const SPEAKERS: [(&str, &str); 2] = [("\n\nHuman:", "user"), ("\n\nAssistant:", "assistant")];
    let whole = format!("\n\n{}", text.trim_start());
    let [(asks, _), (answers, _)] = SPEAKERS;
    if !whole.starts_with(asks) || !whole.contains(answers) {
        return None;
    }
    let mut turns = Turns::default();
    let mut rest = whole.as_str();
    while let Some((mark, role)) = SPEAKERS.iter().find(|(mark, _)| rest.starts_with(mark)) {
        let after = &rest[mark.len()..];
        let ends = SPEAKERS.iter().filter_map(|(mark, _)| after.find(mark));
        let end = ends.min().unwrap_or(after.len());
        turns.push(role, after[..end].trim());
        rest = &after[end..];
    }
    Some(turns)
}

/// Whether the turns end with an empty answer.
fn ends_empty(turns: &Turns) -> bool {
    let last = turns.messages.last();
    last.is_some_and(|turn| turn.role == "assistant" && turn.content.is_empty())
}

/// A text as one message of `role`, a message, or a list of messages. A text may be a transcript of several turns.
fn messages(
    value: &Value,
    field: &str,
    role: &str,
    fields: &Fields<'_>,
) -> Result<Turns, DatasetError> {
    match value {
        Value::String(content) if content.trim().is_empty() => Err(fields.error(field, "is empty")),
        Value::String(_) => {
            let content =
                text(value, "a string").map_err(|message| fields.error(field, message))?;
            match transcript(content) {
                Some(turns) if turns.messages.len() > MAX_TURNS => {
                    let count = turns.messages.len();
                    let message = format!("has {count} turns; at most {MAX_TURNS} are read");
                    Err(fields.error(field, message))
                }
                Some(turns) if role == "assistant" && ends_empty(&turns) => {
                    Err(fields.error(field, EMPTY_ANSWER))
                }
                Some(mut turns) => {
                    if ends_empty(&turns) {
                        // A prompt that ends where the answer begins.
                        turns.messages.pop();
                        turns.marks.pop();
                    }
                    Ok(turns)
                }
                None => Ok(Turns::of(role, content)),
            }
        }
        Value::Array(list) => turns_of(list, field, fields),
        Value::Object(_) => {
            let (message, mark) = turn(value, field, fields)
                .map_err(|(path, message)| fields.error_in(field, &path, message))?;
            let marks = Vec::from_iter((message.role == "assistant").then_some(mark));
            Ok(Turns {
                messages: vec![message],
                marks,
            })
        }
        _ => {
            let message = "must be a string, or a list of objects with `role` and `content`";
            Err(fields.error(field, message))
        }
    }
}
