//! The body of `POST /v1/chat/completions`: OpenAI's fields and a few more. A field that OpenAI defines and Lory does not support is
//! refused by name, unless its value changes nothing.

use std::collections::BTreeMap;

use formats::chat_template::Message;
use serde::Deserialize;
use serde_json::{Value, json};

use super::tools::{CalledTool, ResponseFormat, ToolChoiceField, ToolField, tools};
use crate::error::ApiError;
use crate::json::{Biases, Texts};
use crate::logprobs;
use crate::stream_options::StreamOptions;
use crate::with_sampling::AcceptsSampling;
use sampling::{Interface, SamplingParams};
use service::{Conversation, FieldNames, GenerateRequest};

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ChatRequest {
    pub(super) model: String,
    messages: Vec<ChatMessage>,
    max_tokens: Option<usize>,
    max_completion_tokens: Option<usize>,
    stop: Option<Texts>,
    logit_bias: Option<Biases>,
    logprobs: Option<bool>,
    top_logprobs: Option<u64>,
    response_format: Option<ResponseFormat>,
    tools: Option<Vec<ToolField>>,
    tool_choice: Option<ToolChoiceField>,
    parallel_tool_calls: Option<bool>,
    n: Option<usize>,
    pub(super) stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    // Not OpenAI's, but common among servers of open models.
    ignore_eos: Option<bool>,
    priority: Option<i32>,
    timeout_ms: Option<u64>,
    /// Prompts with different salts share no cached prefix; 1 to 256 bytes.
    cache_salt: Option<String>,
    /// Lory's own: values for the variables of the persona's system prompt, by name.
    variables: Option<BTreeMap<String, String>>,
    // Labels; they change nothing.
    #[serde(rename = "user")]
    _user: Option<Value>,
    #[serde(rename = "metadata")]
    _metadata: Option<Value>,
    #[serde(rename = "safety_identifier")]
    _safety_identifier: Option<Value>,
    #[serde(rename = "prompt_cache_key")]
    _prompt_cache_key: Option<Value>,
    #[serde(rename = "prompt_cache_retention")]
    _prompt_cache_retention: Option<Value>,
    // Not supported.
    audio: Option<Value>,
    function_call: Option<Value>,
    functions: Option<Value>,
    modalities: Option<Value>,
    moderation: Option<Value>,
    prediction: Option<Value>,
    reasoning_effort: Option<Value>,
    service_tier: Option<Value>,
    store: Option<Value>,
    verbosity: Option<Value>,
    web_search_options: Option<Value>,
}

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
struct ChatMessage {
    role: String,
    #[serde(default)]
    content: Option<Content>,
    #[serde(rename = "name")]
    _name: Option<String>,
    // Fields of an assistant's message that clients send back as they received it.
    #[serde(rename = "refusal")]
    _refusal: Option<Value>,
    #[serde(rename = "annotations")]
    _annotations: Option<Value>,
    audio: Option<Value>,
    function_call: Option<Value>,
    tool_calls: Option<Vec<CalledTool>>,
    // The call that a message of the role `tool` answers; messages are in the order of the calls.
    #[serde(rename = "tool_call_id")]
    _tool_call_id: Option<String>,
}

/// A text, or parts of one.
#[derive(Debug)]
struct Content(String);

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
struct TextPart {
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
    #[serde(rename = "image_url")]
    _image_url: Option<Value>,
    #[serde(rename = "input_audio")]
    _input_audio: Option<Value>,
    #[serde(rename = "file")]
    _file: Option<Value>,
    #[serde(rename = "refusal")]
    _refusal: Option<Value>,
}

impl utoipa::PartialSchema for Content {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
        utoipa::openapi::OneOfBuilder::new()
            .item(<String as utoipa::PartialSchema>::schema())
            .item(
                utoipa::openapi::ArrayBuilder::new()
                    .items(<TextPart as utoipa::PartialSchema>::schema()),
            )
            .into()
    }
}

impl utoipa::ToSchema for Content {}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Content;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a text or a list of text parts")
            }

            fn visit_str<E>(self, text: &str) -> Result<Content, E> {
                Ok(Content(text.to_owned()))
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(
                self,
                mut parts: A,
            ) -> Result<Content, A::Error> {
                use serde::de::Error;
                let mut whole = String::new();
                while let Some(part) = parts.next_element::<TextPart>()? {
                    if part.kind != "text" {
                        let kind: String = part.kind.chars().take(40).collect();
                        let message =
                            format!("a part of type {kind:?} is not supported; send \"text\"");
                        return Err(A::Error::custom(message));
                    }
                    whole += &part.text.ok_or_else(|| A::Error::missing_field("text"))?;
                }
                Ok(Content(whole))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl AcceptsSampling for ChatRequest {
    const INTERFACE: Interface = Interface::OpenAi;
}

fn is_empty(value: &Value) -> bool {
    value.as_array().is_some_and(Vec::is_empty)
        || value.as_object().is_some_and(serde_json::Map::is_empty)
}

impl ChatMessage {
    /// Refuses what is not supported; `i` is the number of the message.
    fn check(&self, i: usize) -> Result<(), ApiError> {
        for (field, value) in [
            ("audio", &self.audio),
            ("function_call", &self.function_call),
        ] {
            if value.as_ref().is_some_and(|value| !is_empty(value)) {
                let field = format!("messages[{i}].{field}");
                let message = format!("{field} is not supported; leave it out");
                return Err(ApiError::unsupported(&field, message));
            }
        }
        if self.tool_calls.is_some() && self.role != "assistant" {
            let field = format!("messages[{i}].tool_calls");
            let message = format!("{field} is only for messages of the role assistant");
            return Err(ApiError::unsupported(&field, message));
        }
        if self.content.is_none() && self.tool_calls.is_none() {
            let field = format!("messages[{i}].content");
            let message = format!("{field} is missing");
            return Err(ApiError::bad_request("missing_field", message, Some(field)));
        }
        Ok(())
    }
}

impl ChatRequest {
    /// Whether a stream's last chunk has the usage.
    pub(super) fn usage(&self) -> bool {
        StreamOptions::usage(&self.stream_options)
    }

    /// Refuses what is not supported, by field.
    fn check(&self) -> Result<(), ApiError> {
        self.check_unsupported()?;
        StreamOptions::check(&self.stream_options, self.stream)?;
        if self.top_logprobs.is_some_and(|top| top > 0) && self.logprobs != Some(true) {
            return Err(ApiError::unsupported(
                "top_logprobs",
                "top_logprobs is only for requests with \"logprobs\": true",
            ));
        }
        if self.max_tokens.is_some() && self.max_completion_tokens.is_some() {
            return Err(ApiError::unsupported(
                "max_tokens",
                "max_tokens and max_completion_tokens mean the same; give one",
            ));
        }
        for (i, message) in self.messages.iter().enumerate() {
            message.check(i)?;
        }
        Ok(())
    }

    /// Refuses OpenAI's fields that are not supported.
    fn check_unsupported(&self) -> Result<(), ApiError> {
        let off = |value: &Value| value == &json!(false);
        let never = |_: &Value| false;
        // A field, its value, and which values of it change nothing.
        type Neutral<'a> = &'a dyn Fn(&Value) -> bool;
        let fields: [(&str, &Option<Value>, Neutral<'_>); 11] = [
            ("audio", &self.audio, &never),
            ("function_call", &self.function_call, &|v| v == "none"),
            ("functions", &self.functions, &is_empty),
            ("modalities", &self.modalities, &|v| v == &json!(["text"])),
            ("moderation", &self.moderation, &never),
            ("prediction", &self.prediction, &never),
            ("reasoning_effort", &self.reasoning_effort, &|v| v == "none"),
            ("service_tier", &self.service_tier, &|v| {
                v == "auto" || v == "default"
            }),
            ("store", &self.store, &off),
            ("verbosity", &self.verbosity, &|v| v == "medium"),
            ("web_search_options", &self.web_search_options, &never),
        ];
        for (field, value, neutral) in fields {
            if value.as_ref().is_some_and(|value| !neutral(value)) {
                let instead = match field {
                    "functions" | "function_call" => "use tools and tool_choice",
                    _ => "leave it out",
                };
                let message = format!("{field} is not supported; {instead}");
                return Err(ApiError::unsupported(field, message));
            }
        }
        Ok(())
    }

    /// The request to the service.
    ///
    /// # Errors
    /// The first field that is wrong or not supported.
    pub(super) fn into_request(
        self,
        sampling: SamplingParams,
    ) -> Result<GenerateRequest, ApiError> {
        self.check()?;
        let logprobs = match self.logprobs {
            Some(true) => Some(logprobs::count(
                "top_logprobs",
                self.top_logprobs.unwrap_or(0),
            )?),
            _ => None,
        };
        let limit = if self.max_tokens.is_some() {
            "max_tokens"
        } else {
            "max_completion_tokens"
        };
        let format = self.response_format.map(ResponseFormat::read).transpose()?;
        let tools = tools(self.tools, self.tool_choice, self.parallel_tool_calls)?;
        let mut turns = Vec::with_capacity(self.messages.len());
        for (index, message) in self.messages.into_iter().enumerate() {
            // OpenAI's newer name for the same thing.
            let role = match message.role.as_str() {
                "developer" => "system".to_owned(),
                _ => message.role,
            };
            let Content(content) = message.content.unwrap_or(Content(String::new()));
            let called = message.tool_calls.unwrap_or_default();
            let content = CalledTool::render_message(&content, called, index)?;
            turns.push(Message { role, content });
        }
        Ok(GenerateRequest {
            conversation: Conversation::Messages(turns),
            format: format.unwrap_or_default(),
            tools,
            sampling,
            variables: self.variables.unwrap_or_default(),
            stop: self.stop.map(|Texts(stops)| stops),
            max_new_tokens: self.max_tokens.or(self.max_completion_tokens),
            choices: self.n.unwrap_or(1),
            logprobs,
            logit_bias: self.logit_bias.map_or(Vec::new(), |Biases(biases)| biases),
            ignore_eos: self.ignore_eos == Some(true),
            priority: self.priority.unwrap_or(0),
            timeout_ms: self.timeout_ms,
            cache_salt: self.cache_salt,
            names: FieldNames {
                persona: "model",
                prompt: "messages",
                max_new_tokens: limit,
            },
            ..GenerateRequest::new(Some(&self.model), "")
        })
    }
}
