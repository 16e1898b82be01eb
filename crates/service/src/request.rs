//! A request as plain data, and the checks that need no persona.

use std::collections::BTreeMap;

use formats::chat_template::Message;
use formats::tokenizer::Special;
use registry::spec::MAX_SPEC;
use sampling::SamplingParams;
use sha2::{Digest as _, Sha256};

use crate::caller::Caller;
use crate::error::RequestError;
use crate::fields::{
    FieldNames, MAX_CACHE_SALT, MAX_CHOICES, MAX_LOGPROBS, MAX_STOP_BYTES, MAX_STOPS,
    MAX_TIMEOUT_MS,
};
use crate::grammar::OutputFormat;
use crate::tools::{ToolChoice, Tools};

/// A request for one or several answers.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateRequest {
    /// A persona (`customer`), a version of one (`customer@3`), a blend (`customer*0.7+partner*0.3`), or the base's name.
    /// `None` and `base` mean the base alone.
    pub persona: Option<String>,
    /// The conversation so far.
    pub conversation: Conversation,
    /// Values for the variables of the persona's system prompt, by name.
    pub variables: BTreeMap<String, String>,
    /// Sampling parameters; one that is not set is the persona's.
    pub sampling: SamplingParams,
    /// Texts that end the answer and are not part of it, at most [`MAX_STOPS`]; they replace the persona's.
    pub stop: Option<Vec<String>>,
    /// The most new tokens; by default the persona's, or [`crate::DEFAULT_MAX_NEW_TOKENS`], as far as they fit.
    pub max_new_tokens: Option<usize>,
    /// Whether the answer may fill the context; `max_new_tokens` is not used then.
    pub fill_context: bool,
    /// The number of answers, from 1 to [`MAX_CHOICES`]. Each has its own seed, the first the request's.
    pub choices: usize,
    /// `Some(n)`: every token comes with its log-probability and those of the `n` most probable tokens, at most
    /// [`engine::MAX_TOP_LOGPROBS`].
    pub logprobs: Option<u8>,
    /// The most log-probabilities of all answers, alternatives included; [`MAX_LOGPROBS`] unless several requests share a response.
    pub max_logprobs: usize,
    /// Added to the logits of these tokens; see [`sampling::Sampling::logit_bias`].
    pub logit_bias: Vec<(u32, f32)>,
    /// The format of the answer; with tools it must be [`OutputFormat::Text`].
    pub format: OutputFormat,
    /// The tools that the model may call.
    pub tools: Option<Tools>,
    /// Whether the answer begins with the prompt; only for a text or token ids.
    pub echo: bool,
    /// Whether to continue past the tokens that end an answer, up to `max_new_tokens`; for benchmarks.
    pub ignore_eos: bool,
    /// Waiting requests with lower values run first; 0 by default.
    pub priority: i32,
    /// The milliseconds after which the answer is cut off, from 1 to [`MAX_TIMEOUT_MS`]; by default never.
    pub timeout_ms: Option<u64>,
    /// Separates its cached prompt from those of requests with another salt, 1 to [`MAX_CACHE_SALT`] bytes; a key's requests always
    /// are separate from those of keys outside its group.
    pub cache_salt: Option<String>,
    /// The names of the fields in the caller's interface.
    pub names: FieldNames,
    /// The caller.
    pub caller: Caller,
}

/// The conversation so far.
#[derive(Debug, Clone, PartialEq)]
pub enum Conversation {
    /// One question, in the form of a training row.
    Prompt {
        /// The instruction.
        prompt: String,
        /// What the instruction is about; may be empty.
        input: String,
    },
    /// Turns of the roles `system`, `user`, `assistant`, and `tool` for the result of a call. A system turn at the start replaces
    /// the persona's system prompt.
    Messages(Vec<Message>),
    /// A text to continue, without template and system prompt.
    Text {
        /// The text.
        text: String,
        /// How it spells control tokens: a client that renders a template itself means the tokens.
        special: Special,
    },
    /// The same, as token ids.
    Tokens(Vec<u32>),
}

impl GenerateRequest {
    /// A question to a persona, with defaults for everything else.
    pub fn new(persona: Option<&str>, prompt: &str) -> GenerateRequest {
        GenerateRequest {
            persona: persona.map(str::to_owned),
            conversation: Conversation::Prompt {
                prompt: prompt.to_owned(),
                input: String::new(),
            },
            variables: BTreeMap::new(),
            sampling: SamplingParams::default(),
            stop: None,
            max_new_tokens: None,
            fill_context: false,
            choices: 1,
            logprobs: None,
            max_logprobs: MAX_LOGPROBS,
            logit_bias: Vec::new(),
            format: OutputFormat::Text,
            tools: None,
            echo: false,
            ignore_eos: false,
            priority: 0,
            timeout_ms: None,
            cache_salt: None,
            names: FieldNames::GENERATE,
            caller: Caller::default(),
        }
    }

    /// A hash that decides whether a canary or a shadow takes the request: the same question to the same persona always gives the
    /// same hash, on every server. `spec` is the persona, after an alias was replaced.
    pub(super) fn hash(&self, spec: &str) -> u64 {
        let mut hasher = Sha256::new();
        let mut feed = |text: &str| {
            hasher.update((text.len() as u64).to_le_bytes());
            hasher.update(text);
        };
        feed(spec);
        match &self.conversation {
            Conversation::Prompt { prompt, input } => {
                feed(prompt);
                feed(input);
            }
            Conversation::Messages(messages) => {
                for message in messages {
                    feed(&message.role);
                    feed(&message.content);
                }
            }
            Conversation::Text { text, .. } => feed(text),
            Conversation::Tokens(ids) => {
                for id in ids {
                    feed(&id.to_string());
                }
            }
        }
        let mut first = [0; 8];
        first.copy_from_slice(&hasher.finalize()[..8]);
        u64::from_le_bytes(first)
    }

    /// Checks everything that does not depend on the persona. The engine checks the ranges of the sampling parameters.
    ///
    /// # Errors
    /// [`RequestError`], naming the field.
    pub(super) fn check(&self) -> Result<(), RequestError> {
        // Answers repeat the name, and spaces around it are ignored.
        let named = self.persona.as_ref().map_or(0, String::len);
        if named > MAX_SPEC {
            return Err(RequestError::OutOfRange {
                field: self.names.persona,
                message: format!("has {named} bytes; at most {MAX_SPEC} are allowed"),
            });
        }
        self.check_conversation()?;
        self.check_ranges()?;
        if !self.variables.is_empty() && !self.takes_system_prompt() {
            return Err(RequestError::OutOfRange {
                field: "variables",
                message: "are for the persona's system prompt, and this request does not use it; leave them out"
                    .to_owned(),
            });
        }
        self.check_format()?;
        self.check_stops()
    }

    fn check_conversation(&self) -> Result<(), RequestError> {
        let is_empty = match &self.conversation {
            Conversation::Prompt { prompt, .. } => prompt.trim().is_empty(),
            Conversation::Text { text, .. } => text.is_empty(),
            // The engine refuses empty token ids, under the same name.
            Conversation::Tokens(_) => false,
            Conversation::Messages(messages) => return self.check_messages(messages),
        };
        match is_empty {
            true => Err(RequestError::EmptyPrompt {
                field: self.names.prompt.to_owned(),
            }),
            false => Ok(()),
        }
    }

    fn check_ranges(&self) -> Result<(), RequestError> {
        let out_of_range = |field, message| Err(RequestError::OutOfRange { field, message });
        if self.max_new_tokens == Some(0) {
            let message = "must be at least 1, not 0".to_owned();
            return out_of_range(self.names.max_new_tokens, message);
        }
        if !(1..=MAX_CHOICES).contains(&self.choices) {
            let message = format!("must be from 1 to {MAX_CHOICES}, not {}", self.choices);
            return out_of_range("n", message);
        }
        if let Some(salt) = &self.cache_salt
            && !(1..=MAX_CACHE_SALT).contains(&salt.len())
        {
            let message = format!(
                "must have from 1 to {MAX_CACHE_SALT} bytes, not {}",
                salt.len()
            );
            return out_of_range("cache_salt", message);
        }
        if let Some(timeout) = self.timeout_ms
            && !(1..=MAX_TIMEOUT_MS).contains(&timeout)
        {
            let message = format!("must be from 1 to {MAX_TIMEOUT_MS}, not {timeout}");
            return out_of_range("timeout_ms", message);
        }
        Ok(())
    }

    /// The most log-probabilities that the answers to a prompt of `prompt` tokens can have. Checks that they are at most
    /// `max_logprobs`.
    ///
    /// # Errors
    /// [`RequestError::OutOfRange`].
    pub(super) fn check_logprobs(
        &self,
        prompt: usize,
        max_new_tokens: usize,
    ) -> Result<usize, RequestError> {
        let Some(top) = self.logprobs else {
            return Ok(0);
        };
        let tokens = max_new_tokens + if self.echo { prompt } else { 0 };
        let total = tokens * self.choices * (usize::from(top) + 1);
        if total <= self.max_logprobs {
            return Ok(total);
        }
        let (most, new_tokens) = (self.max_logprobs, self.names.max_new_tokens);
        let (for_each, or_fewer) = match most < MAX_LOGPROBS {
            true => (" for each prompt", ", or send fewer prompts"),
            false => ("", ""),
        };
        let answers = self.choices;
        let with_echo = if self.echo { " with the prompt" } else { "" };
        Err(RequestError::OutOfRange {
            field: "logprobs",
            message: format!(
                "needs up to {total} log-probabilities{for_each}: {answers} answers x {tokens} tokens{with_echo} x {} (the token and {top} \
                 alternatives); at most {most} are allowed; lower the number of alternatives, {new_tokens} or n{or_fewer}",
                usize::from(top) + 1
            ),
        })
    }

    fn check_format(&self) -> Result<(), RequestError> {
        if let Some(tools) = &self.tools {
            tools.check()?;
        }
        let has_format = self.format != OutputFormat::Text;
        if self.calls_tools() && has_format {
            return Err(RequestError::OutOfRange {
                field: "response_format",
                message: "cannot be combined with tools; ask for one of them, or set tool_choice to \"none\""
                    .to_owned(),
            });
        }
        if self.ignore_eos && (self.calls_tools() || has_format) {
            return Err(RequestError::OutOfRange {
                field: "ignore_eos",
                message: "cannot be combined with response_format or tools, which end an answer"
                    .to_owned(),
            });
        }
        Ok(())
    }

    fn check_stops(&self) -> Result<(), RequestError> {
        let stops = self.stop.as_deref().unwrap_or_default();
        if stops.len() > MAX_STOPS {
            return Err(RequestError::TooManyStops { count: stops.len() });
        }
        for (index, stop) in stops.iter().enumerate() {
            if stop.is_empty() || stop.len() > MAX_STOP_BYTES {
                return Err(RequestError::StopLength {
                    index,
                    bytes: stop.len(),
                });
            }
        }
        Ok(())
    }

    /// Whether the request uses the persona's system prompt: a text has none, and a conversation may bring its own.
    pub(super) fn takes_system_prompt(&self) -> bool {
        match &self.conversation {
            Conversation::Prompt { .. } => true,
            Conversation::Messages(turns) => turns.first().is_none_or(|turn| turn.role != "system"),
            Conversation::Text { .. } | Conversation::Tokens(_) => false,
        }
    }

    /// Whether the chat template renders it.
    pub(super) fn has_template(&self) -> bool {
        matches!(
            self.conversation,
            Conversation::Prompt { .. } | Conversation::Messages(_)
        )
    }

    /// Whether the answer may call tools.
    pub(super) fn calls_tools(&self) -> bool {
        let tools = self.tools.as_ref();
        tools.is_some_and(|tools| tools.choice != ToolChoice::None)
    }

    fn check_messages(&self, messages: &[Message]) -> Result<(), RequestError> {
        let field = self.names.prompt;
        if messages.is_empty() {
            return Err(RequestError::EmptyPrompt {
                field: field.to_owned(),
            });
        }
        for (index, message) in messages.iter().enumerate() {
            if !matches!(
                message.role.as_str(),
                "system" | "user" | "assistant" | "tool"
            ) {
                return Err(RequestError::UnknownRole {
                    field: format!("{field}[{index}].role"),
                    role: message.role.chars().take(40).collect(),
                });
            }
            if message.role == "user" && message.content.trim().is_empty() {
                return Err(RequestError::EmptyPrompt {
                    field: format!("{field}[{index}].content"),
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl FnOnce(&mut GenerateRequest)) -> String {
        let mut request = GenerateRequest::new(None, "Hello");
        change(&mut request);
        request.check().unwrap_err().to_string()
    }

    #[test]
    fn simple_question_is_accepted() {
        GenerateRequest::new(Some("customer"), "Hello")
            .check()
            .unwrap();
    }

    #[test]
    fn invalid_fields_are_rejected_by_name() {
        let blank = |request: &mut GenerateRequest| {
            request.conversation = GenerateRequest::new(None, " \n").conversation
        };
        assert!(refused(blank).starts_with("prompt is empty"));
        let message = |turns: &[(&str, &str)]| {
            let turns = turns
                .iter()
                .map(|(role, content)| Message::new(*role, *content))
                .collect();
            refused(|request| request.conversation = Conversation::Messages(turns))
        };
        assert!(message(&[]).starts_with("prompt is empty"));
        assert!(
            message(&[("system", "s"), ("user", "")]).starts_with("prompt[1].content is empty")
        );
        assert!(message(&[("robot", "s")]).starts_with("prompt[0].role"));
        assert!(
            refused(|request| request.max_new_tokens = Some(0))
                .starts_with("max_new_tokens must be")
        );
        for choices in [0, MAX_CHOICES + 1] {
            let message = refused(|request| request.choices = choices);
            assert!(message.starts_with("n must be from 1 to 8"), "{message}");
        }
        for timeout in [0, MAX_TIMEOUT_MS + 1] {
            let message = refused(|request| request.timeout_ms = Some(timeout));
            assert!(
                message.starts_with("timeout_ms must be from 1 to 86400000"),
                "{message}"
            );
        }
        for salt in [String::new(), "s".repeat(MAX_CACHE_SALT + 1)] {
            let message = refused(|request| request.cache_salt = Some(salt));
            assert!(
                message.starts_with("cache_salt must have from 1 to 256 bytes"),
                "{message}"
            );
        }
        let request = GenerateRequest {
            logprobs: Some(20),
            choices: 8,
            ..GenerateRequest::new(None, "Hello")
        };
        request.check_logprobs(5_000, 1_488).unwrap();
        let message = request.check_logprobs(0, 1_489).unwrap_err().to_string();
        assert!(
            message.starts_with(
                "logprobs needs up to 250152 log-probabilities: 8 answers x 1489 tokens x 21 (the token and 20 alternatives); \
                 at most 250000 are allowed; lower the number of alternatives, max_new_tokens or n"
            ),
            "{message}"
        );
        assert!(!message.contains("prompts"), "{message}");
        let echo = GenerateRequest {
            echo: true,
            ..request
        };
        assert!(echo.check_logprobs(5_000, 1).is_err());
        let long = refused(|request| request.persona = Some(format!("warm{}", " ".repeat(1021))));
        assert!(long.starts_with("user_type has 1025 bytes"), "{long}");
        let own_prompt = |request: &mut GenerateRequest| {
            request.variables.insert("shop".to_owned(), "x".to_owned());
            request.conversation = Conversation::Messages(vec![
                Message::new("system", "s"),
                Message::new("user", "u"),
            ]);
        };
        assert!(refused(own_prompt).starts_with("variables are for the persona's system prompt"));
        let stops = |stops: &[&str]| {
            let stops = stops.iter().map(|stop| (*stop).to_owned()).collect();
            refused(|request| request.stop = Some(stops))
        };
        assert!(stops(&["a"; 5]).contains("at most 4"));
        assert!(stops(&["a", ""]).starts_with("stop[1]"));
        assert!(stops(&[&"a".repeat(257)]).contains("257"));
    }
}
