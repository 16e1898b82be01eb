//! What a request gives back: tokens, then one end. Knows nothing of what the tokens mean.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// What a request's sink receives: its prompt's tokens if it asked for their log-probabilities, any number of tokens, then exactly
/// one [`Event::Finished`].
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The next token of the prompt, from the second on: nothing comes before the first, so it has no probability.
    Prompt(Token),
    /// The next token of the completion.
    Token(Token),
    /// The end; nothing follows.
    Finished(Finished),
}

/// One sampled token.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// Its natural log-probability under the model itself (before penalties, temperature and truncation), if the request
    /// asked for log-probabilities.
    pub logprob: Option<f32>,
    /// The most probable tokens with their log-probabilities, falling; as many as the request asked for.
    pub top: Vec<(u32, f32)>,
}

/// How a request ended, and what it took.
#[derive(Clone, Debug, PartialEq)]
pub struct Finished {
    /// Why it ended.
    pub reason: FinishReason,
    /// How long its parts took.
    pub timings: Timings,
    /// Tokens in the prompt.
    pub prompt_tokens: usize,
    /// Those of them that earlier requests under the same adapters had computed.
    pub cached_tokens: usize,
    /// Tokens that were sampled. A stop token that ended the request is counted, as it cost a step like any other, though
    /// no [`Event::Token`] shows it: `completion_tokens` is then one more than the tokens received.
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
    /// The ticket was dropped, the sink said [`Flow::Stop`], or the engine was shut down.
    Cancelled,
    /// The model failed in a step of this request; other requests go on.
    Error(String),
}

/// A request's times, all counted from its submission, or from when it took its seat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timings {
    /// Until the scheduler first took it up (or it ended waiting), the wait for its adapters included.
    pub queue: Duration,
    /// Until its first token was sampled, if one was.
    pub first_token: Option<Duration>,
    /// Until its end.
    pub total: Duration,
}

/// Whether a request goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// More, please.
    Continue,
    /// Enough: the request ends as [`FinishReason::Cancelled`].
    Stop,
}

/// Receives the events of one request, on the engine's thread: it must hand them on and return, never wait. A sink that
/// panics is not called again and its request ends.
pub type Sink = Box<dyn FnMut(Event) -> Flow + Send>;

/// A request's way out: its sink, and the account that [`Finished`] gives. Dropped without an end, it ends the request as
/// cancelled, so no caller waits forever.
pub(crate) struct Outlet {
    sink: Option<Sink>,
    submitted: Instant,
    started: Option<Instant>,
    first_token: Option<Instant>,
    prompt_tokens: usize,
    cached_tokens: usize,
    completion_tokens: usize,
}

impl Outlet {
    /// Times are counted from `submitted`.
    pub fn new(sink: Sink, prompt_tokens: usize, submitted: Instant) -> Self {
        Outlet {
            sink: Some(sink),
            submitted,
            started: None,
            first_token: None,
            prompt_tokens,
            cached_tokens: 0,
            completion_tokens: 0,
        }
    }

    /// Notes that the scheduler took the request up, with so many tokens that need not run; only the first time counts.
    pub fn start(&mut self, cached_tokens: usize) {
        if self.started.is_none() {
            self.started = Some(Instant::now());
            self.cached_tokens = cached_tokens;
        }
    }

    /// Counts one sampled token, shown or not.
    pub fn count(&mut self) {
        self.first_token.get_or_insert_with(Instant::now);
        self.completion_tokens += 1;
    }

    pub fn completion_tokens(&self) -> usize {
        self.completion_tokens
    }

    pub fn prompt(&mut self, token: Token) -> Flow {
        self.send(Event::Prompt(token))
    }

    pub fn token(&mut self, token: Token) -> Flow {
        self.send(Event::Token(token))
    }

    /// Ends the request.
    pub fn finish(mut self, reason: FinishReason) {
        self.send_finished(reason);
    }

    /// Forgets the sink: a request that was never taken gets no events.
    pub fn silence(&mut self) {
        self.sink = None;
    }

    fn send_finished(&mut self, reason: FinishReason) {
        let now = Instant::now();
        let finished = Finished {
            reason,
            timings: Timings {
                queue: self.started.unwrap_or(now) - self.submitted,
                first_token: self.first_token.map(|at| at - self.submitted),
                total: now - self.submitted,
            },
            prompt_tokens: self.prompt_tokens,
            cached_tokens: self.cached_tokens,
            completion_tokens: self.completion_tokens,
        };
        self.send(Event::Finished(finished));
        self.sink = None;
    }

    fn send(&mut self, event: Event) -> Flow {
        let Some(sink) = &mut self.sink else {
            return Flow::Stop;
        };
        catch_unwind(AssertUnwindSafe(|| sink(event))).unwrap_or_else(|_| {
            self.sink = None;
            Flow::Stop
        })
    }
}

impl Drop for Outlet {
    fn drop(&mut self) {
        if self.sink.is_some() {
            self.send_finished(FinishReason::Cancelled);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use super::*;

    fn outlet() -> (Outlet, Receiver<Event>) {
        let (sender, events) = channel();
        let sink: Sink = Box::new(move |event| {
            sender.send(event).unwrap();
            Flow::Continue
        });
        (Outlet::new(sink, 3, Instant::now()), events)
    }

    fn reasons(events: &Receiver<Event>) -> Vec<FinishReason> {
        let reason = |event| match event {
            Event::Finished(finished) => finished.reason,
            Event::Prompt(token) | Event::Token(token) => panic!("{token:?}"),
        };
        events.iter().map(reason).collect()
    }

    #[test]
    fn an_outlet_ends_exactly_once_even_when_it_is_only_dropped() {
        let (dropped, events) = outlet();
        drop(dropped);
        assert_eq!(reasons(&events), [FinishReason::Cancelled]);
        let (finished, events) = outlet();
        finished.finish(FinishReason::Stop);
        assert_eq!(reasons(&events), [FinishReason::Stop]);
        let (mut silent, events) = outlet();
        silent.silence();
        drop(silent);
        assert_eq!(reasons(&events), []);
    }

    #[test]
    fn a_request_that_never_started_spent_all_its_time_in_the_queue() {
        let (waiting, events) = outlet();
        drop(waiting);
        let Event::Finished(end) = events.recv().unwrap() else {
            panic!("no end");
        };
        assert_eq!(end.timings.queue, end.timings.total);
        assert_eq!((end.timings.first_token, end.prompt_tokens), (None, 3));
    }
}
