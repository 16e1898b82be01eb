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
use crate::token_limit::TokenLimit;
use crate::with_sampling::AcceptsSampling;
use sampling::{Interface, SamplingParams};
use service::{Conversation, FieldNames, GenerateRequest};

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ChatRequest {
    pub(super) model: String,
    messages: Vec<ChatMessage>,
    max_tokens: Option<TokenLimit>,
    max_completion_tokens: Option<TokenLimit>,
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
    guided_choice: Option<Value>,
    guided_grammar: Option<Value>,
    guided_json: Option<Value>,
    guided_regex: Option<Value>,
    include_stop_str_in_output: Option<Value>,
    length_penalty: Option<Value>,
    min_tokens: Option<Value>,
    prompt_logprobs: Option<Value>,
    return_token_ids: Option<Value>,
    return_tokens_as_token_ids: Option<Value>,
    skip_special_tokens: Option<Value>,
    spaces_between_special_tokens: Option<Value>,
    stop_token_ids: Option<Value>,
    structured_outputs: Option<Value>,
    truncate_prompt_tokens: Option<Value>,
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
    /// The text of an assistant's message without content.
    refusal: Option<String>,
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
    /// The text of a part of the type `refusal`.
    refusal: Option<String>,
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
                    if part.kind == "refusal" {
                        let refusal = part.refusal;
                        whole += &refusal.ok_or_else(|| A::Error::missing_field("refusal"))?;
                        continue;
                    }
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
        let is_result = matches!(self.role.as_str(), "tool" | "function");
        let is_refusal = self.role == "assistant" && self.refusal.is_some();
        let has_text = self.content.is_some() || is_result || is_refusal;
        if !has_text && calls.iter().all(|(_, given)| !given) {
            let field = format!("messages[{i}].content");
            let message = format!("{field} is missing or null");
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
        let max_tokens = self.max_tokens.or(self.max_completion_tokens);
        let format = self.response_format.map(ResponseFormat::read).transpose()?;
        let tools = tools(self.tools, self.tool_choice, self.parallel_tool_calls)?;
        let mut turns = Vec::with_capacity(self.messages.len());
        for (index, message) in self.messages.into_iter().enumerate() {
            // OpenAI's newer name for the same thing.
            let role = match message.role.as_str() {
                "developer" => "system".to_owned(),
                // OpenAI's older name for the result of a call.
                "function" => "tool".to_owned(),
                _ => message.role,
            };
            let refusal = message.refusal.filter(|_| role == "assistant");
            let Content(content) = match message.content {
                Some(Content(text)) if !text.is_empty() => Content(text),
                _ => Content(refusal.unwrap_or_default()),
            };
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
            max_new_tokens: max_tokens.and_then(TokenLimit::tokens),
            fill_context: max_tokens == Some(TokenLimit::Context),
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::with_sampling::WithSampling;

    fn read(messages: Value, more: Value) -> Result<GenerateRequest, String> {
        let mut body = json!({"model": "warm", "messages": messages});
        let fields = more.as_object().unwrap().clone();
        body.as_object_mut().unwrap().extend(fields);
        let read = serde_json::from_value::<WithSampling<ChatRequest>>(body);
        let WithSampling { request, sampling } = read.map_err(|error| error.to_string())?;
        let request = request.into_request(sampling);
        request.map_err(|error| format!("{error:?}"))
    }

    fn turns(messages: Value) -> Vec<(String, String)> {
        let request = read(messages, json!({})).unwrap();
        let Conversation::Messages(turns) = request.conversation else {
            panic!("no messages")
        };
        let turns = turns.into_iter();
        turns.map(|turn| (turn.role, turn.content)).collect()
    }

    #[test]
    fn result_of_a_function_is_the_result_of_a_tool() {
        let found = turns(json!([
            {"role": "user", "content": "Where is it?"},
            {"role": "assistant", "content": null, "function_call": {"name": "f", "arguments": "{}"}},
            {"role": "function", "name": "f", "content": "here"},
            {"role": "tool", "tool_call_id": "c", "content": null},
        ]));
        let pair = |role: &str, text: &str| (role.to_owned(), text.to_owned());
        assert_eq!(found[2..], [pair("tool", "here"), pair("tool", "")]);
    }

    #[test]
    fn refusal_is_the_text_of_an_answer_without_content() {
        for answer in [
            json!({"role": "assistant", "content": null, "refusal": "I cannot."}),
            json!({"role": "assistant", "content": [{"type": "refusal", "refusal": "I cannot."}]}),
            json!({"role": "assistant", "content": "I cannot.", "refusal": null}),
        ] {
            let found = turns(json!([{"role": "user", "content": "?"}, answer]));
            assert_eq!(found[1].1, "I cannot.");
        }
        let empty = json!([{"role": "assistant", "content": null, "refusal": null}]);
        let message = read(empty, json!({})).unwrap_err();
        assert!(
            message.contains("messages[0].content is missing"),
            "{message}"
        );
    }

    #[test]
    fn null_in_a_field_of_another_server_changes_nothing() {
        let ask = |more| read(json!([{"role": "user", "content": "?"}]), more);
        for field in [
            "guided_choice",
            "guided_grammar",
            "guided_json",
            "guided_regex",
            "prompt_logprobs",
            "structured_outputs",
            "truncate_prompt_tokens",
        ] {
            ask(json!({field: null})).unwrap();
            let message = ask(json!({field: 1})).unwrap_err();
            assert!(
                message.contains(&format!("{field} is not supported")),
                "{message}"
            );
        }
    }

    #[test]
    fn minus_one_and_an_empty_stop_mean_no_limit() {
        let ask = |more| read(json!([{"role": "user", "content": "?"}]), more);
        for field in ["max_tokens", "max_completion_tokens"] {
            let request = ask(json!({field: -1, "top_k": -1, "stop": ""})).unwrap();
            assert!(request.fill_context && request.max_new_tokens.is_none());
            assert_eq!(request.sampling.top_k, Some(0));
            assert_eq!(request.stop, Some(Vec::new()));
            for five in [json!(5), json!(5.0)] {
                let request = ask(json!({field: five})).unwrap();
                assert!(!request.fill_context && request.max_new_tokens == Some(5));
            }
            for refused in [json!(-2), json!(-2.0), json!(5.5), json!(1e300)] {
                let message = ask(json!({field: refused})).unwrap_err();
                assert!(message.contains("or -1 for as many as fit"), "{message}");
            }
        }
        let message = ask(json!({"top_k": -2})).unwrap_err();
        assert!(message.contains("or -1 for no limit"), "{message}");
    }
}
