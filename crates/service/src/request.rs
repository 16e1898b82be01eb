//! A request, as plain data, and what can be said about it before anything is looked up.

use std::collections::BTreeMap;

use formats::chat_template::Message;
use sha2::{Digest as _, Sha256};

use crate::caller::Caller;
use crate::error::RequestError;
use crate::grammar::OutputFormat;
use crate::tools::{ToolChoice, Tools};

/// The most stop strings of a request.
pub const MAX_STOPS: usize = 4;
/// The longest stop string, in bytes.
pub const MAX_STOP_BYTES: usize = 256;
/// The most answers to one request.
pub const MAX_CHOICES: usize = 8;
/// The longest `timeout_ms`: a day.
pub const MAX_TIMEOUT_MS: u64 = 24 * 60 * 60 * 1000;

/// What is asked of whom.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateRequest {
    /// A persona (`customer`), a version of one (`customer@3`), a blend (`customer*0.7+partner*0.3`), or the base's name.
    /// Without, or as `base` where no persona is called so, the base alone.
    pub persona: Option<String>,
    /// What is said to it.
    pub conversation: Conversation,
    /// Values for the variables of its system prompt, by name.
    pub variables: BTreeMap<String, String>,
    /// Sampling settings; what is not given is the persona's.
    pub overrides: Overrides,
    /// Texts that end the answer and are not shown, at most [`MAX_STOPS`]; they replace the persona's.
    pub stop: Option<Vec<String>>,
    /// The most new tokens; without, the persona's, or [`crate::DEFAULT_MAX_NEW_TOKENS`], as far as they fit.
    pub max_new_tokens: Option<usize>,
    /// How many answers, from 1 to [`MAX_CHOICES`]; each draws with a seed of its own, the first with the request's.
    pub choices: usize,
    /// `Some(n)`: every token comes with its log-probability and those of the `n` most probable tokens, at most
    /// [`engine::MAX_TOP_LOGPROBS`].
    pub logprobs: Option<u8>,
    /// Added to the logits of these tokens; see [`engine::Sampling::logit_bias`].
    pub logit_bias: Vec<(u32, f32)>,
    /// What the answer must look like; other than [`OutputFormat::Text`] only without tools.
    pub format: OutputFormat,
    /// What may be called.
    pub tools: Option<Tools>,
    /// Begin the answer with the prompt; only for a text or token ids.
    pub echo: bool,
    /// Go on past the tokens that end an answer, up to `max_new_tokens`: for measurements.
    pub ignore_eos: bool,
    /// The lower goes first, where requests wait; 0 is the usual.
    pub priority: i32,
    /// The most milliseconds until the answer ends as it is then, from 1 to [`MAX_TIMEOUT_MS`]; without, it takes the time
    /// that it takes.
    pub timeout_ms: Option<u64>,
    /// What the caller's interface calls the fields.
    pub names: FieldNames,
    /// Who asks.
    pub caller: Caller,
}

/// What was said so far.
#[derive(Debug, Clone, PartialEq)]
pub enum Conversation {
    /// One question, as a row of training data puts it.
    Prompt {
        /// The instruction.
        prompt: String,
        /// What the instruction is about; may be empty.
        input: String,
    },
    /// Turns of the roles `system`, `user` and `assistant`, and `tool` for what a call gave. A system turn in front replaces the persona's own.
    Messages(Vec<Message>),
    /// A text that goes on as it is: no template, no system prompt.
    Text(String),
    /// The same, as token ids.
    Tokens(Vec<u32>),
}

/// Sampling settings of a request; see [`engine::Sampling`] for what they do and their ranges.
#[allow(missing_docs, reason = "the names are those of engine::Sampling")]
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Overrides {
    pub temperature: Option<f32>,
    pub top_p: Option<f32>,
    pub top_k: Option<usize>,
    pub min_p: Option<f32>,
    pub repetition_penalty: Option<f32>,
    pub frequency_penalty: Option<f32>,
    pub presence_penalty: Option<f32>,
    pub seed: Option<u64>,
}

/// What an interface calls the fields that errors speak of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FieldNames {
    /// The persona.
    pub persona: &'static str,
    /// The prompt.
    pub prompt: &'static str,
    /// The most new tokens.
    pub max_new_tokens: &'static str,
}

impl FieldNames {
    /// Those of `POST /generate` and of the command line.
    pub const GENERATE: FieldNames = FieldNames {
        persona: "user_type",
        prompt: "prompt",
        max_new_tokens: "max_new_tokens",
    };
}

impl GenerateRequest {
    /// A question to a persona, everything else left to it.
    pub fn new(persona: Option<&str>, prompt: &str) -> GenerateRequest {
        GenerateRequest {
            persona: persona.map(str::to_owned),
            conversation: Conversation::Prompt {
                prompt: prompt.to_owned(),
                input: String::new(),
            },
            variables: BTreeMap::new(),
            overrides: Overrides::default(),
            stop: None,
            max_new_tokens: None,
            choices: 1,
            logprobs: None,
            logit_bias: Vec::new(),
            format: OutputFormat::Text,
            tools: None,
            echo: false,
            ignore_eos: false,
            priority: 0,
            timeout_ms: None,
            names: FieldNames::GENERATE,
            caller: Caller::default(),
        }
    }

    /// The number by which a canary or a shadow takes the request or does not: the same question to the same persona always
    /// gets the same, on every server.
    pub(super) fn draw(&self) -> u64 {
        let mut hasher = Sha256::new();
        let mut feed = |text: &str| {
            hasher.update((text.len() as u64).to_le_bytes());
            hasher.update(text);
        };
        feed(self.persona.as_deref().unwrap_or_default());
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
            Conversation::Text(text) => feed(text),
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

    /// What is wrong without knowing any persona. The ranges of sampling settings are the engine's to check.
    pub(super) fn check(&self) -> Result<(), RequestError> {
        match &self.conversation {
            Conversation::Prompt { prompt, .. } if prompt.trim().is_empty() => {
                return Err(RequestError::EmptyPrompt {
                    field: self.names.prompt.to_owned(),
                });
            }
            Conversation::Text(text) if text.is_empty() => {
                return Err(RequestError::EmptyPrompt {
                    field: self.names.prompt.to_owned(),
                });
            }
            // Empty token ids are the engine's to refuse, by the same name.
            Conversation::Prompt { .. } | Conversation::Text(_) | Conversation::Tokens(_) => {}
            Conversation::Messages(messages) => self.check_messages(messages)?,
        }
        if self.max_new_tokens == Some(0) {
            return Err(RequestError::OutOfRange {
                field: self.names.max_new_tokens,
                message: "must be at least 1, not 0".to_owned(),
            });
        }
        if !(1..=MAX_CHOICES).contains(&self.choices) {
            return Err(RequestError::OutOfRange {
                field: "n",
                message: format!("must be from 1 to {MAX_CHOICES}, not {}", self.choices),
            });
        }
        if let Some(timeout) = self.timeout_ms
            && !(1..=MAX_TIMEOUT_MS).contains(&timeout)
        {
            return Err(RequestError::OutOfRange {
                field: "timeout_ms",
                message: format!("must be from 1 to {MAX_TIMEOUT_MS}, not {timeout}"),
            });
        }
        if !self.variables.is_empty() && !self.takes_system_prompt() {
            return Err(RequestError::OutOfRange {
                field: "variables",
                message: "are for the persona's system prompt, and this request does not use it; leave them out"
                    .to_owned(),
            });
        }
        if let Some(tools) = &self.tools {
            tools.check()?;
        }
        if self.calls_tools() && self.format != OutputFormat::Text {
            return Err(RequestError::OutOfRange {
                field: "response_format",
                message: "cannot be combined with tools; ask for one of them, or set tool_choice to \"none\""
                    .to_owned(),
            });
        }
        if self.ignore_eos && (self.calls_tools() || self.format != OutputFormat::Text) {
            return Err(RequestError::OutOfRange {
                field: "ignore_eos",
                message: "cannot be combined with response_format or tools, which end an answer"
                    .to_owned(),
            });
        }
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

    /// Whether the persona's system prompt stands in front: a text has none, and a conversation may bring its own.
    pub(super) fn takes_system_prompt(&self) -> bool {
        match &self.conversation {
            Conversation::Prompt { .. } => true,
            Conversation::Messages(turns) => turns.first().is_none_or(|turn| turn.role != "system"),
            Conversation::Text(_) | Conversation::Tokens(_) => false,
        }
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
    fn a_plain_question_is_fine() {
        GenerateRequest::new(Some("customer"), "Hello")
            .check()
            .unwrap();
    }

    #[test]
    fn what_is_wrong_is_named() {
        let blank = |request: &mut GenerateRequest| {
            request.conversation = GenerateRequest::new(None, " \n").conversation
        };
        assert!(refused(blank).starts_with("prompt is empty"));
        let said = |turns: &[(&str, &str)]| {
            let turns = turns
                .iter()
                .map(|(role, content)| Message::new(*role, *content))
                .collect();
            refused(|request| request.conversation = Conversation::Messages(turns))
        };
        assert!(said(&[]).starts_with("prompt is empty"));
        assert!(said(&[("system", "s"), ("user", "")]).starts_with("prompt[1].content is empty"));
        assert!(said(&[("robot", "s")]).starts_with("prompt[0].role"));
        assert!(
            refused(|request| request.max_new_tokens = Some(0))
                .starts_with("max_new_tokens must be")
        );
        for choices in [0, MAX_CHOICES + 1] {
            let said = refused(|request| request.choices = choices);
            assert!(said.starts_with("n must be from 1 to 8"), "{said}");
        }
        for timeout in [0, MAX_TIMEOUT_MS + 1] {
            let said = refused(|request| request.timeout_ms = Some(timeout));
            assert!(
                said.starts_with("timeout_ms must be from 1 to 86400000"),
                "{said}"
            );
        }
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
