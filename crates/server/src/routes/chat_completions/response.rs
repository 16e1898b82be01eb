//! The response of `POST /v1/chat/completions`, whole and in chunks.

use serde::Serialize;
use service::{Answer, ToolCall, ToolCallDelta};
use utoipa::ToSchema;

use crate::completion_object::{Completion, random_id};
use crate::logprobs::ChatLogprobs;

// A doc comment would wrap the schema in an `allOf`.
#[derive(Serialize, ToSchema)]
#[schema(as = ChatAnswer)]
pub(crate) struct ChatResponse(#[schema(inline)] pub(super) Completion<ChatChoice>);

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ChatChoice {
    index: u64,
    #[schema(value_type = serde_json::Value)]
    message: Message,
    #[schema(required, value_type = Option<serde_json::Value>)]
    logprobs: Option<ChatLogprobs>,
    /// `stop`, `length`, `tool_calls` or `timeout`.
    finish_reason: &'static str,
}

impl ChatChoice {
    pub fn new(index: usize, answer: Answer, logprobs: Option<ChatLogprobs>) -> ChatChoice {
        ChatChoice {
            index: index as u64,
            message: Message::new(answer.text, &answer.calls),
            logprobs,
            finish_reason: answer.end.reason.name(),
        }
    }
}

/// An assistant's message.
#[derive(Debug, Serialize)]
pub(super) struct Message {
    role: &'static str,
    /// None if the message only calls tools.
    content: Option<String>,
    refusal: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ToolCallObject>,
}

impl Message {
    fn new(text: String, calls: &[ToolCall]) -> Message {
        let only_calls = text.is_empty() && !calls.is_empty();
        Message {
            role: "assistant",
            content: (!only_calls).then_some(text),
            refusal: None,
            tool_calls: calls.iter().map(ToolCallObject::new).collect(),
        }
    }
}

/// A tool call, or more of one.
#[derive(Debug, Serialize)]
pub(super) struct ToolCallObject {
    /// Its number, in a stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<usize>,
    /// At the start of a call.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    /// At the start of a call.
    #[serde(skip_serializing_if = "Option::is_none")]
    r#type: Option<&'static str>,
    function: FunctionObject,
}

#[derive(Debug, Serialize)]
struct FunctionObject {
    /// At the start of a call.
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    arguments: String,
}

impl ToolCallObject {
    fn new(call: &ToolCall) -> ToolCallObject {
        ToolCallObject::begin(None, call.name.clone(), call.arguments.clone())
    }

    fn begin(index: Option<usize>, name: String, arguments: String) -> ToolCallObject {
        ToolCallObject {
            index,
            id: Some(random_id("call")),
            r#type: Some("function"),
            function: FunctionObject {
                name: Some(name),
                arguments,
            },
        }
    }
}

/// The choice of a chunk.
#[derive(Debug, Serialize)]
pub(super) struct ChunkChoice {
    pub index: usize,
    pub delta: ChunkDelta,
    pub logprobs: Option<ChatLogprobs>,
    pub finish_reason: Option<&'static str>,
}

/// What a chunk adds to the message.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum ChunkDelta {
    Begin(Message),
    Text { content: String },
    Call { tool_calls: [ToolCallObject; 1] },
    End {},
}

impl ChunkDelta {
    pub fn begin() -> ChunkDelta {
        ChunkDelta::Begin(Message::new(String::new(), &[]))
    }

    pub fn text(text: &str) -> ChunkDelta {
        ChunkDelta::Text {
            content: text.to_owned(),
        }
    }

    pub fn call(call: &ToolCallDelta) -> ChunkDelta {
        let call = match call {
            ToolCallDelta::Begin { index, name } => {
                ToolCallObject::begin(Some(*index), name.clone(), String::new())
            }
            ToolCallDelta::Arguments { index, text } => ToolCallObject {
                index: Some(*index),
                id: None,
                r#type: None,
                function: FunctionObject {
                    name: None,
                    arguments: text.clone(),
                },
            },
        };
        ChunkDelta::Call { tool_calls: [call] }
    }
}
