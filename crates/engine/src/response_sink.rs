//! One request's sink, and the counts and times that its [`Finished`] event reports.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use crate::event::{Event, FinishReason, Finished, Flow, Sink, Timings, Token};

/// Emits a request's events to its sink. Dropped before [`ResponseSink::finish`], it ends the request as cancelled, so no
/// caller waits forever.
pub(crate) struct ResponseSink {
    sink: Option<Sink>,
    submitted: Instant,
    scheduled: Option<Instant>,
    first_token: Option<Instant>,
    prompt_tokens: usize,
    cached_tokens: usize,
    completion_tokens: usize,
}

impl ResponseSink {
    /// Times are counted from `submitted`.
    pub fn new(sink: Sink, prompt_tokens: usize, submitted: Instant) -> Self {
        ResponseSink {
            sink: Some(sink),
            submitted,
            scheduled: None,
            first_token: None,
            prompt_tokens,
            cached_tokens: 0,
            completion_tokens: 0,
        }
    }

    /// Whether the scheduler has admitted the request before.
    pub fn is_scheduled(&self) -> bool {
        self.scheduled.is_some()
    }

    /// The scheduler admitted the request, with `cached_tokens` from the prefix cache. Only the first call counts: an
    /// admission after a preemption does not.
    pub fn mark_scheduled(&mut self, cached_tokens: usize) {
        if self.scheduled.is_none() {
            self.scheduled = Some(Instant::now());
            self.cached_tokens = cached_tokens;
        }
    }

    /// Counts one sampled token, whether it is emitted or not.
    pub fn count_token(&mut self) {
        self.first_token.get_or_insert_with(Instant::now);
        self.completion_tokens += 1;
    }

    pub fn completion_tokens(&self) -> usize {
        self.completion_tokens
    }

    pub fn emit_prompt_token(&mut self, token: Token) -> Flow {
        self.send(Event::Prompt(token))
    }

    pub fn emit_token(&mut self, token: Token) -> Flow {
        self.send(Event::Token(token))
    }

    /// Ends the request.
    pub fn finish(mut self, reason: FinishReason) {
        self.send_finished(reason);
    }

    /// Drops the sink without an event, for a request that the engine never accepted.
    pub fn discard(&mut self) {
        self.sink = None;
    }

    fn send_finished(&mut self, reason: FinishReason) {
        let now = Instant::now();
        let finished = Finished {
            reason,
            timings: Timings {
                queue: self.scheduled.unwrap_or(now) - self.submitted,
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

impl Drop for ResponseSink {
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

    fn response() -> (ResponseSink, Receiver<Event>) {
        let (sender, events) = channel();
        let sink: Sink = Box::new(move |event| {
            sender.send(event).unwrap();
            Flow::Continue
        });
        (ResponseSink::new(sink, 3, Instant::now()), events)
    }

    fn reasons(events: &Receiver<Event>) -> Vec<FinishReason> {
        let reason = |event| match event {
            Event::Finished(finished) => finished.reason,
            Event::Prompt(token) | Event::Token(token) => panic!("{token:?}"),
        };
        events.iter().map(reason).collect()
    }

    #[test]
    fn exactly_one_finished_event_is_sent_even_if_the_response_is_only_dropped() {
        let (dropped, events) = response();
        drop(dropped);
        assert_eq!(reasons(&events), [FinishReason::Cancelled]);
        let (finished, events) = response();
        finished.finish(FinishReason::Stop);
        assert_eq!(reasons(&events), [FinishReason::Stop]);
        let (mut discarded, events) = response();
        discarded.discard();
        drop(discarded);
        assert_eq!(reasons(&events), []);
    }

    #[test]
    fn request_that_never_started_spent_all_its_time_in_the_queue() {
        let (waiting, events) = response();
        drop(waiting);
        let Event::Finished(end) = events.recv().unwrap() else {
            panic!("no end");
        };
        assert_eq!(end.timings.queue, end.timings.total);
        assert_eq!((end.timings.first_token, end.prompt_tokens), (None, 3));
    }
}
