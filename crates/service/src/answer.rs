//! The way back: the engine's tokens become text, stop strings end it. Runs on the engine's thread, where it costs less
//! than a microsecond a token, so that a stop string ends the request before another token is sampled and the counts
//! never depend on timing.

use std::collections::VecDeque;

use engine::{Event, Flow, Token};
use formats::tokenizer::Detokenizer;

use crate::error::RequestError;
use crate::persona_resolution::ModelIdentity;
use crate::request_metrics::RequestRecorder;
use crate::stop::StopWatcher;
use crate::tool_call_parser::{Piece, ToolCallParser};
use crate::tools::ToolCall;

/// Part of an answer.
#[derive(Debug, Clone, PartialEq)]
pub enum TextEvent {
    /// More of it.
    Delta(Delta),
    /// More of its calls of tools.
    ToolCall(ToolCallDelta),
    /// The end; nothing follows.
    End(End),
}

/// More of an answer.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Delta {
    /// The text: whole characters, and never empty unless there are tokens.
    pub text: String,
    /// The tokens that began in it, where the request asked for log-probabilities; those of the prompt too, where it is echoed.
    pub tokens: Vec<TokenLogprob>,
}

/// More of an answer's calls, which are counted from 0.
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

/// A token of an answer with its log-probabilities.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprob {
    /// Its bytes; they need not be whole characters.
    pub bytes: Vec<u8>,
    /// Whether it is a control token, which stands for no text.
    pub special: bool,
    /// Its natural log-probability under the model itself; none for the first of a prompt.
    pub logprob: Option<f32>,
    /// The most probable tokens, falling, as many as were asked for.
    pub top: Vec<(Vec<u8>, f32)>,
}

/// Receives the text of one answer on the engine's thread: it must hand it on and return, never wait. [`Flow::Stop`] ends
/// the request.
pub type TextSink = Box<dyn FnMut(TextEvent) -> Flow + Send>;

/// How an answer ended, and what it took.
#[derive(Debug, Clone, PartialEq)]
pub struct End {
    /// Why.
    pub reason: FinishReason,
    /// Tokens in the prompt, system prompt and template included.
    pub prompt_tokens: usize,
    /// Of those, the tokens that did not run, as an earlier request in the same tone had begun alike.
    pub cached_tokens: usize,
    /// Tokens sampled, the one that ended the answer included.
    pub completion_tokens: usize,
    /// How long its parts took.
    pub timings: engine::Timings,
}

/// Why an answer ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended it, or a stop string.
    Stop,
    /// The model called tools and ended it.
    ToolCalls,
    /// `max_new_tokens` were sampled.
    Length,
    /// Its `timeout_ms` passed first.
    Timeout,
    /// The caller went away, or the service is ending.
    Cancelled,
    /// The model failed; the text for people says how.
    Failed(String),
}

impl FinishReason {
    /// The reason as it stands in answers: `stop`, `tool_calls`, `length` or `timeout`, or `cancelled` or `error`.
    pub fn name(&self) -> &'static str {
        match self {
            FinishReason::Stop => "stop",
            FinishReason::ToolCalls => "tool_calls",
            FinishReason::Length => "length",
            FinishReason::Timeout => "timeout",
            FinishReason::Cancelled => "cancelled",
            FinishReason::Failed(_) => "error",
        }
    }
}

impl End {
    /// Whether there is an answer, if perhaps not a whole one.
    ///
    /// # Errors
    /// [`RequestError::Timeout`] if there was no time for a single token, [`RequestError::Failed`] if the model failed, [`RequestError::Stopped`] if the engine ended it.
    pub fn check(&self) -> Result<(), RequestError> {
        match &self.reason {
            FinishReason::Timeout if self.completion_tokens == 0 => Err(RequestError::Timeout),
            FinishReason::Stop
            | FinishReason::ToolCalls
            | FinishReason::Length
            | FinishReason::Timeout => Ok(()),
            FinishReason::Cancelled => Err(RequestError::Stopped),
            FinishReason::Failed(message) => Err(RequestError::Failed(message.clone())),
        }
    }
}

/// A whole answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// What was said, without a stop string.
    pub text: String,
    /// Its tokens, where the request asked for log-probabilities.
    pub tokens: Vec<TokenLogprob>,
    /// The tools that it calls.
    pub calls: Vec<ToolCall>,
    /// Who said it.
    pub identity: ModelIdentity,
    /// How it ended.
    pub end: End,
}

/// An answer under way, of which nothing is lost.
#[derive(Debug, Default)]
pub struct AnswerBuilder {
    text: String,
    tokens: Vec<TokenLogprob>,
    calls: Vec<ToolCall>,
}

impl AnswerBuilder {
    /// Takes in more.
    pub fn add(&mut self, delta: Delta) {
        self.text.push_str(&delta.text);
        self.tokens.extend(delta.tokens);
    }

    /// Takes in more of its calls.
    pub fn call(&mut self, delta: ToolCallDelta) {
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
    pub fn end(self, identity: ModelIdentity, end: End) -> Result<Answer, RequestError> {
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

/// Turns one request's events into text.
pub(super) struct Writer {
    detokenizer: Detokenizer,
    /// Where the answer may call tools.
    reader: Option<ToolCallParser>,
    /// Calls so far.
    calls: usize,
    /// Watches the text beside calls.
    stops: StopWatcher,
    sink: TextSink,
    recorder: RequestRecorder,
    /// What the answer begins with, before the first token: the prompt's text, and its tokens.
    echo: Option<(String, Vec<TokenLogprob>)>,
    /// Bytes of text that the tokens have given so far.
    decoded: usize,
    /// Tokens with log-probabilities whose text is not shown yet, each with the byte where it begins.
    unshown: VecDeque<(usize, TokenLogprob)>,
    /// A stop string was met.
    stopped: bool,
}

impl Writer {
    pub fn new(
        detokenizer: Detokenizer,
        stops: &[String],
        sink: TextSink,
        recorder: RequestRecorder,
    ) -> Writer {
        Writer {
            detokenizer,
            reader: None,
            calls: 0,
            stops: StopWatcher::new(stops),
            sink,
            recorder,
            echo: None,
            decoded: 0,
            unshown: VecDeque::new(),
            stopped: false,
        }
    }

    /// Reads calls of tools out of the text.
    pub fn read_calls(&mut self) {
        self.reader = Some(ToolCallParser::default());
    }

    /// Begins the answer with the prompt's text, and with its tokens where the engine tells of them: all but the first.
    pub fn echo(&mut self, text: String, first: Option<u32>) {
        let first = first.map(|id| TokenLogprob {
            bytes: self.detokenizer.bytes(id).to_vec(),
            special: self.detokenizer.is_special(id),
            logprob: None,
            top: Vec::new(),
        });
        self.echo = Some((text, first.into_iter().collect()));
    }

    pub fn take(&mut self, event: Event) -> Flow {
        self.recorder.see(&event, self.stopped);
        if let Event::Prompt(token) = &event {
            let spoken = self.spoken(token);
            if let Some((_, tokens)) = &mut self.echo {
                tokens.extend(spoken);
            }
            return Flow::Continue;
        }
        if let Some((text, tokens)) = self.echo.take()
            && self.send(text, tokens) == Flow::Stop
        {
            return Flow::Stop;
        }
        match event {
            // Taken above.
            Event::Prompt(_) => Flow::Continue,
            Event::Token(token) => {
                if let Some(spoken) = self.spoken(&token) {
                    self.unshown.push_back((self.decoded, spoken));
                }
                let text = self.detokenizer.push(token.id);
                self.write(&text)
            }
            Event::Finished(finished) => {
                let cut = matches!(
                    finished.reason,
                    engine::FinishReason::Cancelled | engine::FinishReason::Error(_)
                );
                // Nothing of what was held back is shown if the answer was cut off from outside.
                if !self.stopped && !cut {
                    let last = self.detokenizer.finish();
                    self.write(&last);
                    let held = self.reader.as_mut().and_then(ToolCallParser::finish);
                    if let Some(piece) = held.filter(|_| !self.stopped) {
                        self.piece(piece);
                    }
                    if !self.stopped {
                        let held = self.stops.finish();
                        let tokens = self.unshown.drain(..).map(|(_, token)| token).collect();
                        self.send(held, tokens);
                    }
                }
                let reason = match finished.reason {
                    _ if self.stopped => FinishReason::Stop,
                    engine::FinishReason::Stop if self.calls > 0 => FinishReason::ToolCalls,
                    engine::FinishReason::Stop => FinishReason::Stop,
                    engine::FinishReason::Length => FinishReason::Length,
                    engine::FinishReason::Deadline => FinishReason::Timeout,
                    engine::FinishReason::Cancelled => FinishReason::Cancelled,
                    engine::FinishReason::Error(message) => FinishReason::Failed(message),
                };
                (self.sink)(TextEvent::End(End {
                    reason,
                    prompt_tokens: finished.prompt_tokens,
                    cached_tokens: finished.cached_tokens,
                    completion_tokens: finished.completion_tokens,
                    timings: finished.timings,
                }))
            }
        }
    }

    fn write(&mut self, text: &str) -> Flow {
        if text.is_empty() || self.stopped {
            return Flow::Continue;
        }
        self.decoded += text.len();
        let pieces = match &mut self.reader {
            Some(reader) => reader.push(text),
            None => vec![Piece::Text(text.to_owned())],
        };
        for piece in pieces {
            if self.piece(piece) == Flow::Stop {
                return Flow::Stop;
            }
        }
        // Tokens inside a call have no text of their own to go with.
        let tokens = self.shown_tokens();
        self.send(String::new(), tokens)
    }

    fn piece(&mut self, piece: Piece) -> Flow {
        match piece {
            Piece::Text(text) => self.text(&text),
            Piece::ToolCall(name) => {
                // Nothing that came before a call can become a stop string with what comes after it.
                let held = self.stops.finish();
                let tokens = self.shown_tokens();
                if self.send(held, tokens) == Flow::Stop {
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

    fn text(&mut self, text: &str) -> Flow {
        let (shown, stopped) = self.stops.push(text);
        self.stopped = stopped;
        let tokens = self.shown_tokens();
        match self.send(shown, tokens) {
            Flow::Continue if stopped => Flow::Stop,
            flow => flow,
        }
    }

    /// The tokens that began in what is shown by now.
    fn shown_tokens(&mut self) -> Vec<TokenLogprob> {
        let held = self.reader.as_ref().map_or(0, ToolCallParser::held) + self.stops.held();
        let shown = self.decoded - held;
        let mut tokens = Vec::new();
        while let Some((_, token)) = self.unshown.pop_front_if(|(begin, _)| *begin < shown) {
            tokens.push(token);
        }
        tokens
    }

    fn send(&mut self, text: String, tokens: Vec<TokenLogprob>) -> Flow {
        if text.is_empty() && tokens.is_empty() {
            return Flow::Continue;
        }
        (self.sink)(TextEvent::Delta(Delta { text, tokens }))
    }

    fn spoken(&self, token: &Token) -> Option<TokenLogprob> {
        let bytes = |id: u32| self.detokenizer.bytes(id).to_vec();
        Some(TokenLogprob {
            bytes: bytes(token.id),
            special: self.detokenizer.is_special(token.id),
            logprob: Some(token.logprob?),
            top: token
                .top
                .iter()
                .map(|(id, logprob)| (bytes(*id), *logprob))
                .collect(),
        })
    }
}
