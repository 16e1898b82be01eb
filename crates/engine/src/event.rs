//! The events that a request's caller receives: tokens, then one end. Does not know what the tokens mean.

use std::time::Duration;

/// An event of one request. A sink receives the prompt's tokens if the request asked for their log-probabilities, then any
/// number of tokens, then exactly one [`Event::Finished`].
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The next token of the prompt, from the second on. The first has no probability, as no token precedes it.
    Prompt(Token),
    /// The next token of the completion.
    Token(Token),
    /// The end; no event follows.
    Finished(Finished),
}

/// One token with its log-probabilities.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// Its natural log-probability under the model itself (before penalties, temperature and truncation), if the request
    /// asked for log-probabilities.
    pub logprob: Option<f32>,
    /// The most probable tokens with their log-probabilities, in descending order; as many as the request asked for.
    pub top: Vec<(u32, f32)>,
}

/// How a request ended, with its counts and times.
#[derive(Clone, Debug, PartialEq)]
pub struct Finished {
    /// Why it ended.
    pub reason: FinishReason,
    /// How long its phases took.
    pub timings: Timings,
    /// Tokens in the prompt.
    pub prompt_tokens: usize,
    /// Prompt tokens that came from the prefix cache.
    pub cached_tokens: usize,
    /// Tokens that were sampled. A stop token that ended the request is counted, as it cost a step like any other, but
    /// not emitted: `completion_tokens` is then one more than the number of [`Event::Token`]s.
    pub completion_tokens: usize,
}

/// Why a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model sampled one of the request's stop tokens.
    Stop,
    /// `max_new_tokens` were sampled.
    Length,
    /// The request's deadline passed, waiting or running.
    Deadline,
    /// The ticket was dropped, the sink returned [`Flow::Stop`], or the engine was shut down.
    Cancelled,
    /// The request's constraint allows no token or reached a limit, with a message for people.
    Constraint(String),
    /// The model failed in a step of this request; other requests continue.
    Error(String),
}

/// A request's times, all counted from its submission, or from when its permit was acquired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timings {
    /// Until the scheduler first admitted it (or it ended waiting), including the wait for its adapters.
    pub queue: Duration,
    /// Until its first token was sampled, if one was.
    pub first_token: Option<Duration>,
    /// Until its end.
    pub total: Duration,
}

/// Whether a request continues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Generate the next token.
    Continue,
    /// End the request as [`FinishReason::Cancelled`].
    Stop,
}

/// Receives the events of one request, on the engine's thread: it must pass them on and return, never wait. A sink that
/// panics is not called again and its request ends.
pub type Sink = Box<dyn FnMut(Event) -> Flow + Send>;
