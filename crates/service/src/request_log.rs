//! The log entry of a request, collected by the parts that work on it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use engine::Finished;

use crate::logprob_budget::LogprobReservation;
use crate::model_identity::ModelIdentity;

/// One line of the request log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RequestLogEntry {
    /// The name of the caller's key.
    pub key: Option<String>,
    /// The persona, the blend or the base that answers.
    pub persona: Option<String>,
    /// The persona's version.
    pub version: Option<u32>,
    /// How it ended: the `outcome` label of the metric `lory_requests_total`.
    pub outcome: Option<&'static str>,
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// Prompt tokens that were found in the prefix cache.
    pub cached_tokens: u64,
    /// Tokens sampled, over all choices.
    pub completion_tokens: u64,
    /// From its arrival until the engine started it.
    pub queue: Option<Duration>,
    /// From its arrival to its first token.
    pub first_token: Option<Duration>,
    /// Fields of its messages that were ignored.
    pub ignored_keys: usize,
    /// The status that the response had; none if the client left before there was one.
    pub status: Option<u16>,
    /// The code of the error with which it ended, if any.
    pub code: Option<&'static str>,
}

type WriteEntry = Box<dyn Fn(&RequestLogEntry) + Send + Sync>;

/// Collects the log entry of one request. All parts that work on the request share it; the last one to drop it writes it.
pub struct RequestLog {
    entry: Mutex<RequestLogEntry>,
    /// What its responses hold.
    logprobs: Mutex<Vec<LogprobReservation>>,
    write: WriteEntry,
}

impl RequestLog {
    /// An empty entry; `write` is called once, when the last reference drops.
    pub fn new(write: impl Fn(&RequestLogEntry) + Send + Sync + 'static) -> Arc<RequestLog> {
        Arc::new(RequestLog {
            entry: Mutex::default(),
            logprobs: Mutex::default(),
            write: Box::new(write),
        })
    }

    /// Changes the entry.
    pub fn update(&self, change: impl FnOnce(&mut RequestLogEntry)) {
        change(&mut self.entry.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Keeps a reservation until the response has ended: the last part that works on the request is the one that sends it.
    pub(super) fn hold(&self, logprobs: LogprobReservation) {
        let mut held = self.logprobs.lock().unwrap_or_else(PoisonError::into_inner);
        held.push(logprobs);
    }

    pub(super) fn resolved(&self, identity: &ModelIdentity) {
        self.update(|entry| {
            entry.persona = Some(identity.name.clone());
            entry.version = identity.version;
        });
    }

    pub(super) fn finished(&self, outcome: &'static str, end: &Finished, first: bool) {
        self.update(|entry| {
            entry.outcome = Some(outcome);
            // The answers to one prompt share its tokens.
            if first {
                entry.prompt_tokens += end.prompt_tokens as u64;
                entry.cached_tokens += end.cached_tokens as u64;
            }
            entry.completion_tokens += end.completion_tokens as u64;
            entry.queue.get_or_insert(end.timings.queue);
            entry.first_token = match (entry.first_token, end.timings.first_token) {
                (Some(one), Some(other)) => Some(one.min(other)),
                (one, other) => one.or(other),
            };
        });
    }
}

impl Drop for RequestLog {
    fn drop(&mut self) {
        let entry = self.entry.get_mut().unwrap_or_else(PoisonError::into_inner);
        (self.write)(entry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::caller::Caller;

    #[test]
    fn entry_is_written_once_when_the_last_reference_drops() {
        let written = Arc::new(Mutex::new(Vec::new()));
        let write = Arc::clone(&written);
        let log = RequestLog::new(move |entry| write.lock().unwrap().push(entry.clone()));
        let caller = Caller::new(None, Some(Arc::clone(&log)));
        log.update(|entry| entry.status = Some(200));
        drop(log);
        assert!(written.lock().unwrap().is_empty());
        drop(caller);
        let written = written.lock().unwrap();
        assert_eq!((written.len(), written[0].status), (1, Some(200)));
    }
}
