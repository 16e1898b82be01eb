//! Who asks, and the account of what became of it. Whoever works on a request holds the account; the last one to let go of it
//! tells what it says, be that the response or the engine.

use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use engine::{Client, Finished};
use registry::LookupError;

use crate::error::RequestError;
use crate::persona_resolution::ModelIdentity;
use auth::{Denied, Hold, Key};

/// Who asks. The default is someone whom nobody asked for a key: everything is allowed, nothing is written down.
#[derive(Clone, Default)]
pub struct Caller {
    key: Option<Arc<Key>>,
    log: Option<Arc<RequestLog>>,
}

impl Caller {
    /// The holder of a key, or without one somebody who needs none.
    #[must_use]
    pub fn new(key: Option<Arc<Key>>, log: Option<Arc<RequestLog>>) -> Caller {
        Caller { key, log }
    }

    /// Its key.
    #[must_use]
    pub fn key(&self) -> Option<&Arc<Key>> {
        self.key.as_ref()
    }

    /// Whether it may use the persona of this name.
    #[must_use]
    pub fn may_use(&self, persona: &str) -> bool {
        self.key.as_ref().is_none_or(|key| key.may_use(persona))
    }

    /// Whether it may administer; whoever needs no key may.
    #[must_use]
    pub fn is_admin(&self) -> bool {
        self.key
            .as_ref()
            .is_none_or(|key| key.check_admin().is_ok())
    }

    /// # Errors
    /// [`Denied::Persona`].
    pub fn check_persona(&self, persona: &str) -> Result<(), Denied> {
        self.key
            .as_ref()
            .map_or(Ok(()), |key| key.check_persona(persona))
    }

    /// # Errors
    /// [`Denied::Persona`].
    pub fn check_base(&self, name: &str) -> Result<(), Denied> {
        self.key.as_ref().map_or(Ok(()), |key| key.check_base(name))
    }

    /// The same error, without the names of personas that are not its business.
    pub(super) fn seen(&self, mut error: LookupError) -> LookupError {
        if let LookupError::Unknown { available, .. } = &mut error {
            available.retain(|name| self.may_use(name));
        }
        error
    }

    /// Takes from its minute what a request of this priority may take: the prompt once, and each answer at its longest. A hold
    /// for each answer.
    pub(super) fn admit(
        &self,
        priority: i32,
        prompt: usize,
        max_new_tokens: usize,
        answers: usize,
    ) -> Result<Vec<Hold>, RequestError> {
        let Some(key) = &self.key else {
            return Ok(Vec::new());
        };
        key.check_priority(priority)
            .map_err(|source| RequestError::Denied {
                field: Some("priority"),
                source,
            })?;
        let held = (0..answers).map(|answer| {
            let prompt = if answer == 0 { prompt } else { 0 };
            key.hold_tokens((prompt + max_new_tokens) as u64)
        });
        // Those that were held before one is refused go back with it.
        held.collect::<Result<_, _>>()
            .map_err(|source| RequestError::Denied {
                field: None,
                source,
            })
    }

    /// Whose share of the engine it runs on: each key's is its own, by the key's weight.
    pub(super) fn client(&self) -> Option<Client> {
        let key = self.key.as_ref()?;
        let mut hasher = DefaultHasher::new();
        key.name().hash(&mut hasher);
        Some(Client {
            id: hasher.finish(),
            weight: NonZeroU32::new(key.share()).unwrap_or(NonZeroU32::MIN),
        })
    }

    /// What it writes to, if anything is written down.
    pub(super) fn log(&self) -> Option<Arc<RequestLog>> {
        self.log.clone()
    }
}

/// Its name only: nothing of the key.
impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.key.as_ref().map(|key| key.name());
        f.debug_tuple("Caller").field(&name).finish()
    }
}

impl PartialEq for Caller {
    fn eq(&self, other: &Caller) -> bool {
        let name = |caller: &Caller| caller.key.as_ref().map(|key| key.name().to_owned());
        name(self) == name(other)
    }
}

/// What is known of a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RequestLogEntry {
    /// The name of the caller's key.
    pub key: Option<String>,
    /// Who answers: a persona, a blend, or the base's name.
    pub persona: Option<String>,
    /// The persona's version.
    pub version: Option<u32>,
    /// How it ended, in the words of the metric `lory_requests_total`.
    pub outcome: Option<&'static str>,
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// Of those, the tokens that did not run.
    pub cached_tokens: u64,
    /// Tokens sampled, over all choices.
    pub completion_tokens: u64,
    /// From its arrival until it was taken up.
    pub queue: Option<Duration>,
    /// From its arrival to its first token.
    pub first_token: Option<Duration>,
    /// The status that the response had; none if the client left before there was one.
    pub status: Option<u16>,
}

type Tell = Box<dyn Fn(&RequestLogEntry) + Send + Sync>;

/// Where it is written down what became of one request.
pub struct RequestLog {
    entry: Mutex<RequestLogEntry>,
    tell: Tell,
}

impl RequestLog {
    /// An empty one; `tell` is called once, when nobody works on the request any more.
    pub fn new(tell: impl Fn(&RequestLogEntry) + Send + Sync + 'static) -> Arc<RequestLog> {
        Arc::new(RequestLog {
            entry: Mutex::default(),
            tell: Box::new(tell),
        })
    }

    /// Writes something down.
    pub fn update(&self, write: impl FnOnce(&mut RequestLogEntry)) {
        write(&mut self.entry.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(super) fn resolved(&self, identity: &ModelIdentity) {
        self.update(|entry| {
            entry.persona = Some(identity.name.clone());
            entry.version = identity.version;
        });
    }

    pub(super) fn ended(&self, outcome: &'static str, end: &Finished, first: bool) {
        self.update(|entry| {
            entry.outcome = Some(outcome);
            // The answers to one prompt share it.
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
        (self.tell)(entry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_one_to_let_go_tells_once() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let write = Arc::clone(&told);
        let log = RequestLog::new(move |entry| write.lock().unwrap().push(entry.clone()));
        let caller = Caller::new(None, Some(Arc::clone(&log)));
        log.update(|entry| entry.status = Some(200));
        drop(log);
        assert!(told.lock().unwrap().is_empty());
        drop(caller);
        let told = told.lock().unwrap();
        assert_eq!((told.len(), told[0].status), (1, Some(200)));
    }
}
