//! Turns the engine's tokens into text, watches for stop strings, and reads tool calls. Runs on the engine's thread, where it
//! costs less than a microsecond a token: a stop string ends the request before another token is sampled, so the counts never
//! depend on timing.

use std::collections::VecDeque;

use engine::{Event, Flow, Token};
use formats::tokenizer::Detokenizer;
use kernels::Device;

use crate::error::RequestError;
use crate::model_identity::ModelIdentity;
use crate::request_metrics::RequestRecorder;
use crate::stop::StopWatcher;
use crate::tool_call_parser::{Piece, ToolCallParser};
use crate::tools::ToolCall;

/// Part of an answer.
#[derive(Debug, Clone, PartialEq)]
pub enum TextEvent {
    /// More text.
    Delta(Delta),
    /// More of a tool call.
    ToolCall(ToolCallDelta),
    /// The end, the last event.
    End(End),
}

/// More text of an answer.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Delta {
    /// Whole characters; empty only if there are tokens.
    pub text: String,
    /// The tokens that begin in the text, if the request wants log-probabilities; also those of an echoed prompt.
    pub tokens: Vec<TokenLogprob>,
}

/// More of a tool call; calls are numbered from 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToolCallDelta {
    /// A call begins.
    Begin {
        /// Its number.
        index: usize,
        /// The tool's name.
        name: String,
    },
    /// More of a call's arguments.
    Arguments {
        /// The call's number.
        index: usize,
        /// More of the JSON; never empty.
        text: String,
    },
}

/// A token of an answer with its log-probabilities. It names tokens by their ids, which take a tenth of the memory that their texts
/// take; [`Detokenizer::bytes`] has the texts.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprob {
    /// Its id.
    pub id: u32,
    /// Its natural log-probability in the model's own distribution; none for the first token of a prompt.
    pub logprob: Option<f32>,
    /// The most probable tokens, in descending order, as many as the request wants.
    pub top: Vec<(u32, f32)>,
}

/// Receives the events of one answer on the engine's thread, so it must pass them on and never block. [`Flow::Stop`] ends the
/// request.
pub type TextSink = Box<dyn FnMut(TextEvent) -> Flow + Send>;

/// How an answer ended, with its counts and timings.
#[derive(Debug, Clone, PartialEq)]
pub struct End {
    /// Why.
    pub reason: FinishReason,
    /// Tokens of the prompt, including the system prompt and the template.
    pub prompt_tokens: usize,
    /// Prompt tokens that were found in the prefix cache.
    pub cached_tokens: usize,
    /// Sampled tokens, including the one that ended the answer.
    pub completion_tokens: usize,
    /// How long each part took.
    pub timings: engine::Timings,
}

/// Why an answer ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FinishReason {
    /// The model or a stop string ended it.
    Stop,
    /// The model called tools and then ended it.
    ToolCalls,
    /// `max_new_tokens` were sampled.
    Length,
    /// Its `timeout_ms` passed first.
    Timeout,
    /// The client went away, or the service is shutting down.
    Cancelled,
    /// Its grammar reached a limit or allows no token, with a message for people.
    Grammar(String),
    /// The model failed, with a message for people.
    Failed(String),
    /// The device failed for good, with its reason.
    DeviceFailed(String),
}

impl FinishReason {
    /// The reason as in responses: `stop`, `tool_calls`, `length` or `timeout`, or `cancelled` or `error`.
    pub fn name(&self) -> &'static str {
        match self {
            FinishReason::Stop => "stop",
            FinishReason::ToolCalls => "tool_calls",
            FinishReason::Length => "length",
            FinishReason::Timeout => "timeout",
            FinishReason::Cancelled => "cancelled",
            FinishReason::Grammar(_) | FinishReason::Failed(_) | FinishReason::DeviceFailed(_) => {
                "error"
            }
        }
    }
}

impl End {
    /// Whether there is an answer, which may be cut off.
    ///
    /// # Errors
    /// [`RequestError::Timeout`] if there was no time for a single token, [`RequestError::GrammarLimit`] if its grammar
    /// failed, [`RequestError::Failed`] if the model failed, [`RequestError::DeviceFailed`] if its device did,
    /// [`RequestError::Stopped`] if the engine ended it.
    pub fn check(&self) -> Result<(), RequestError> {
        match &self.reason {
            FinishReason::Timeout if self.completion_tokens == 0 => Err(RequestError::Timeout),
            FinishReason::Stop
            | FinishReason::ToolCalls
            | FinishReason::Length
            | FinishReason::Timeout => Ok(()),
            FinishReason::Cancelled => Err(RequestError::Stopped),
            FinishReason::Grammar(message) => Err(RequestError::GrammarLimit(message.clone())),
            FinishReason::Failed(message) => Err(RequestError::Failed(message.clone())),
            FinishReason::DeviceFailed(reason) => Err(RequestError::DeviceFailed(reason.clone())),
        }
    }
}

/// A whole answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The text, without the stop string.
    pub text: String,
    /// Its tokens, if the request wants log-probabilities.
    pub tokens: Vec<TokenLogprob>,
    /// Its tool calls.
    pub calls: Vec<ToolCall>,
    /// What answered.
    pub identity: ModelIdentity,
    /// How it ended.
    pub end: End,
}

/// Collects the events of an answer.
#[derive(Debug, Default)]
pub struct AnswerBuilder {
    text: String,
    tokens: Vec<TokenLogprob>,
    calls: Vec<ToolCall>,
}

impl AnswerBuilder {
    /// Appends text.
    pub fn push(&mut self, delta: Delta) {
        self.text.push_str(&delta.text);
        self.tokens.extend(delta.tokens);
    }

    /// Appends to a tool call.
    pub fn push_call(&mut self, delta: ToolCallDelta) {
        match delta {
            ToolCallDelta::Begin { name, .. } => self.calls.push(ToolCall {
                name,
                arguments: String::new(),
            }),
            ToolCallDelta::Arguments { index, text } => {
                if let Some(call) = self.calls.get_mut(index) {
                    call.arguments += &text;
                }
            }
        }
    }

    /// The whole answer.
    ///
    /// # Errors
    /// Those of [`End::check`].
    pub fn finish(self, identity: ModelIdentity, end: End) -> Result<Answer, RequestError> {
        end.check()?;
        Ok(Answer {
            text: self.text,
            tokens: self.tokens,
            calls: self.calls,
            identity,
            end,
        })
    }
}

/// Turns the engine's events of one answer into text events.
pub(super) struct OutputProcessor {
    detokenizer: Detokenizer,
    /// Set if the answer may call tools.
    parser: Option<ToolCallParser>,
    /// The number of tool calls so far.
    calls: usize,
    /// Watches the text outside tool calls.
    stops: StopWatcher,
    sink: TextSink,
    recorder: RequestRecorder,
    /// Where the model runs: it knows whether an error is for good.
    device: Option<Device>,
    /// An echo to emit before the first token: the text of the prompt, and its tokens.
    echo: Option<(String, Vec<TokenLogprob>)>,
    /// Bytes of decoded text so far.
    decoded: usize,
    /// Tokens with log-probabilities whose text is not emitted yet, each with the byte where it begins.
    pending_tokens: VecDeque<(usize, TokenLogprob)>,
    /// Whether a stop string was found.
    stopped: bool,
}

impl OutputProcessor {
    pub fn new(
        detokenizer: Detokenizer,
        stops: &[String],
        sink: TextSink,
        recorder: RequestRecorder,
    ) -> OutputProcessor {
        OutputProcessor {
            detokenizer,
            parser: None,
            calls: 0,
            stops: StopWatcher::new(stops),
            sink,
            recorder,
            device: None,
            echo: None,
            decoded: 0,
            pending_tokens: VecDeque::new(),
            stopped: false,
        }
    }

    /// Ends with the device's reason if the model fails because of it.
    pub fn runs_on(&mut self, device: &Device) {
        self.device = Some(device.clone());
    }

    /// Reads tool calls out of the text.
    pub fn parse_tool_calls(&mut self) {
        self.parser = Some(ToolCallParser::default());
    }

    /// Starts the answer with the prompt's text and tokens. The engine reports the log-probabilities of all but the first token.
    pub fn echo(&mut self, text: String, first: Option<u32>) {
        let first = first.map(|id| TokenLogprob {
            id,
            logprob: None,
            top: Vec::new(),
        });
        self.echo = Some((text, first.into_iter().collect()));
    }

    /// Processes an event of the engine.
    pub fn process(&mut self, event: Event) -> Flow {
        self.recorder.observe(&event, self.stopped);
        if let Event::Prompt(token) = event {
            let token = token_logprob(token);
            if let Some((_, tokens)) = &mut self.echo {
                tokens.extend(token);
            }
            return Flow::Continue;
        }
        if let Some((text, tokens)) = self.echo.take()
            && self.emit(text, tokens) == Flow::Stop
        {
            return Flow::Stop;
        }
        match event {
            // Handled above.
            Event::Prompt(_) => Flow::Continue,
            Event::Token(token) => {
                let text = self.detokenizer.push(token.id);
                if let Some(scored) = token_logprob(token) {
                    self.pending_tokens.push_back((self.decoded, scored));
                }
                self.push_text(&text)
            }
            Event::Finished(finished) => self.finish(finished),
        }
    }

    /// Emits the text that is held back, and the end.
    fn finish(&mut self, finished: engine::Finished) -> Flow {
        let cut = matches!(
            finished.reason,
            engine::FinishReason::Cancelled
                | engine::FinishReason::Constraint(_)
                | engine::FinishReason::Error(_)
        );
        // Text that is held back is not emitted if the answer was cut off from outside.
        if !self.stopped && !cut {
            // Bytes of a character that was not completed are left out.
            let held = self.parser.as_mut().and_then(ToolCallParser::finish);
            if let Some(piece) = held.filter(|_| !self.stopped) {
                self.emit_piece(piece);
            }
            if !self.stopped {
                let held = self.stops.finish();
                let tokens = self
                    .pending_tokens
                    .drain(..)
                    .map(|(_, token)| token)
                    .collect();
                self.emit(held, tokens);
            }
        }
        let reason = match finished.reason {
            _ if self.stopped => FinishReason::Stop,
            engine::FinishReason::Stop if self.calls > 0 => FinishReason::ToolCalls,
            engine::FinishReason::Stop => FinishReason::Stop,
            engine::FinishReason::Length => FinishReason::Length,
            engine::FinishReason::Deadline => FinishReason::Timeout,
            engine::FinishReason::Cancelled => FinishReason::Cancelled,
            engine::FinishReason::Constraint(message) => FinishReason::Grammar(message),
            engine::FinishReason::Error(message) => {
                match self.device.as_ref().and_then(Device::fault) {
                    Some(reason) => FinishReason::DeviceFailed(reason),
                    None => FinishReason::Failed(message),
                }
            }
        };
        (self.sink)(TextEvent::End(End {
            reason,
            prompt_tokens: finished.prompt_tokens,
            cached_tokens: finished.cached_tokens,
            completion_tokens: finished.completion_tokens,
            timings: finished.timings,
        }))
    }

    fn push_text(&mut self, text: &str) -> Flow {
        if text.is_empty() || self.stopped {
            return Flow::Continue;
        }
        self.decoded += text.len();
        let pieces = match &mut self.parser {
            Some(parser) => parser.push(text),
            None => vec![Piece::Text(text.to_owned())],
        };
        for piece in pieces {
            if self.emit_piece(piece) == Flow::Stop {
                return Flow::Stop;
            }
        }
        // Tokens inside a tool call are emitted without text.
        let tokens = self.emitted_tokens();
        self.emit(String::new(), tokens)
    }

    fn emit_piece(&mut self, piece: Piece) -> Flow {
        match piece {
            Piece::Text(text) => self.emit_text(&text),
            Piece::ToolCall(name) => {
                // A stop string cannot span a tool call.
                let held = self.stops.finish();
                let tokens = self.emitted_tokens();
                if self.emit(held, tokens) == Flow::Stop {
                    return Flow::Stop;
                }
                let index = self.calls;
                self.calls += 1;
                (self.sink)(TextEvent::ToolCall(ToolCallDelta::Begin { index, name }))
            }
            Piece::Arguments(text) => {
                let index = self.calls.saturating_sub(1);
                (self.sink)(TextEvent::ToolCall(ToolCallDelta::Arguments {
                    index,
                    text,
                }))
            }
        }
    }

    fn emit_text(&mut self, text: &str) -> Flow {
        let (text, stopped) = self.stops.push(text);
        self.stopped = stopped;
        let tokens = self.emitted_tokens();
        match self.emit(text, tokens) {
            Flow::Continue if stopped => Flow::Stop,
            flow => flow,
        }
    }

    /// Takes the pending tokens that begin in the text emitted so far.
    fn emitted_tokens(&mut self) -> Vec<TokenLogprob> {
        let held = self.parser.as_ref().map_or(0, ToolCallParser::held) + self.stops.held();
        let emitted = self.decoded - held;
        let mut tokens = Vec::new();
        while let Some((_, token)) = self
            .pending_tokens
            .pop_front_if(|(begin, _)| *begin < emitted)
        {
            tokens.push(token);
        }
        tokens
    }

    fn emit(&mut self, text: String, tokens: Vec<TokenLogprob>) -> Flow {
        if text.is_empty() && tokens.is_empty() {
            return Flow::Continue;
        }
        (self.sink)(TextEvent::Delta(Delta { text, tokens }))
    }
}

/// The token with its log-probabilities; none if the request does not want them.
fn token_logprob(token: Token) -> Option<TokenLogprob> {
    Some(TokenLogprob {
        id: token.id,
        logprob: Some(token.logprob?),
        top: token.top,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn limit_of_a_grammar_is_the_clients_mistake_and_a_broken_model_is_not() {
        let ended = |reason: FinishReason| {
            let end = End {
                reason,
                prompt_tokens: 1,
                cached_tokens: 0,
                completion_tokens: 0,
                timings: engine::Timings {
                    queue: Duration::ZERO,
                    first_token: None,
                    total: Duration::ZERO,
                },
            };
            end.check().unwrap_err()
        };
        let limit = ended(FinishReason::Grammar("too many states".to_owned()));
        assert!(matches!(limit, RequestError::GrammarLimit(_)), "{limit}");
        assert!(limit.to_string().contains("make the schema simpler"));
        let broken = ended(FinishReason::Failed("no memory".to_owned()));
        assert!(matches!(broken, RequestError::Failed(_)), "{broken}");
    }
}
