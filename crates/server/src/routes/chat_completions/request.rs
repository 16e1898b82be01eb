//! The body of `POST /v1/chat/completions`: OpenAI's fields and a few more. A field that OpenAI defines and Lory does not support is
//! refused by name, unless its value changes nothing.

use std::collections::BTreeMap;

use formats::chat_template::Message;
use serde::Deserialize;
use serde_json::Value;

use super::tools::{
    CalledFunction, CalledTool, ResponseFormat, ToolChoiceField, ToolField, render_message, tools,
};
use crate::error::ApiError;
use crate::json::{Biases, Texts};
use crate::logprobs;
use crate::neutral_fields::{self, is_empty, shared_neutral_fields};
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
    #[serde(rename = "request_id")]
    _request_id: Option<Value>,
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
    // Of other servers: only the values that change nothing.
    add_generation_prompt: Option<Value>,
    add_special_tokens: Option<Value>,
    bad_words: Option<Value>,
    best_of: Option<Value>,
    cache_prompt: Option<Value>,
    chat_template_kwargs: Option<Value>,
    continue_final_message: Option<Value>,
    documents: Option<Value>,
    early_stopping: Option<Value>,
    echo: Option<Value>,
    extra_body: Option<Value>,
    include_stop_str_in_output: Option<Value>,
    length_penalty: Option<Value>,
    min_tokens: Option<Value>,
    return_token_ids: Option<Value>,
    return_tokens_as_token_ids: Option<Value>,
    skip_special_tokens: Option<Value>,
    spaces_between_special_tokens: Option<Value>,
    stop_token_ids: Option<Value>,
    use_beam_search: Option<Value>,
}

/// A message. Other fields are ignored and counted: clients send back what other servers sent them, and add their own.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
struct ChatMessage {
    role: String,
    #[serde(default)]
    content: Option<Content>,
    #[serde(rename = "name")]
    _name: Option<Value>,
    audio: Option<Value>,
    function_call: Option<CalledFunction>,
    tool_calls: Option<Vec<CalledTool>>,
    // The call that a message of the role `tool` answers; messages are in the order of the calls.
    #[serde(rename = "tool_call_id")]
    _tool_call_id: Option<Value>,
    #[serde(flatten)]
    #[schema(ignore)]
    other: IgnoredKeys,
}

/// Counts the fields of an object that are ignored.
#[derive(Debug, Default)]
struct IgnoredKeys(usize);

impl<'de> Deserialize<'de> for IgnoredKeys {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = IgnoredKeys;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(
                self,
                mut fields: A,
            ) -> Result<IgnoredKeys, A::Error> {
                let mut count = 0;
                while fields
                    .next_entry::<serde::de::IgnoredAny, serde::de::IgnoredAny>()?
                    .is_some()
                {
                    count += 1;
                }
                Ok(IgnoredKeys(count))
            }
        }
        deserializer.deserialize_map(Visitor)
    }
}

/// A text, or parts of one.
#[derive(Debug)]
struct Content(String);

/// A part of a text. Other fields are ignored.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
struct TextPart {
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
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

impl ChatMessage {
    /// Refuses what is not supported; `i` is the number of the message.
    fn check(&self, i: usize) -> Result<(), ApiError> {
        if self.audio.as_ref().is_some_and(|audio| !is_empty(audio)) {
            let field = format!("messages[{i}].audio");
            let message = format!("{field} is not supported; leave it out");
            return Err(ApiError::unsupported(&field, message));
        }
        let calls = [
            ("tool_calls", self.tool_calls.is_some()),
            ("function_call", self.function_call.is_some()),
        ];
        if let Some((field, _)) = calls.iter().find(|(_, given)| *given)
            && self.role != "assistant"
        {
            let field = format!("messages[{i}].{field}");
            let message = format!("{field} is only for messages of the role assistant");
            return Err(ApiError::unsupported(&field, message));
        }
        if self.content.is_none() && calls.iter().all(|(_, given)| !given) {
            let field = format!("messages[{i}].content");
            let message = format!("{field} is missing");
            return Err(ApiError::bad_request("missing_field", message, Some(field)));
        }
        Ok(())
    }
}

impl ChatRequest {
    /// How many fields of the messages are ignored.
    pub(super) fn ignored_keys(&self) -> usize {
        self.messages.iter().map(|message| message.other.0).sum()
    }

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

    /// Refuses fields of OpenAI's and of other servers with values that are not supported.
    fn check_unsupported(&self) -> Result<(), ApiError> {
        neutral_fields::check(&[
            ("audio", &self.audio),
            ("function_call", &self.function_call),
            ("functions", &self.functions),
            ("modalities", &self.modalities),
            ("moderation", &self.moderation),
            ("prediction", &self.prediction),
            ("reasoning_effort", &self.reasoning_effort),
            ("service_tier", &self.service_tier),
            ("store", &self.store),
            ("verbosity", &self.verbosity),
            ("web_search_options", &self.web_search_options),
            ("add_generation_prompt", &self.add_generation_prompt),
            ("add_special_tokens", &self.add_special_tokens),
            ("best_of", &self.best_of),
            ("chat_template_kwargs", &self.chat_template_kwargs),
            ("continue_final_message", &self.continue_final_message),
            ("documents", &self.documents),
            ("echo", &self.echo),
        ])?;
        neutral_fields::check(&shared_neutral_fields!(self))
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
            let content = render_message(&content, called, message.function_call, index)?;
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
