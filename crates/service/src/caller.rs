//! The caller of a request: its API key, what the key permits, and the request log.

use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::num::NonZeroU32;
use std::sync::Arc;

use engine::Client;
use registry::spec::BlendPart;
use registry::{LookupError, Persona, Personas};

use crate::error::RequestError;
use crate::request_log::RequestLog;
use auth::{AuthError, Key, Owner, TokenReservation};

/// The caller of a request. The default is a caller on a server without keys: everything is permitted, nothing is logged.
#[derive(Clone, Default)]
pub struct Caller {
    key: Option<Arc<Key>>,
    log: Option<Arc<RequestLog>>,
}

impl Caller {
    /// A caller with this key; without a key, one that needs none.
    #[must_use]
    pub fn new(key: Option<Arc<Key>>, log: Option<Arc<RequestLog>>) -> Caller {
        Caller { key, log }
    }

    /// Its key.
    #[must_use]
    pub fn key(&self) -> Option<&Arc<Key>> {
        self.key.as_ref()
    }

    /// The owner of its records.
    #[must_use]
    pub fn owner(&self) -> Owner {
        match &self.key {
            Some(key) => key.owner(),
            None => Owner::everyone(),
        }
    }

    /// Counts fields of its messages that are ignored, in the request log.
    pub fn log_ignored_keys(&self, count: usize) {
        if let Some(log) = &self.log {
            log.update(|entry| entry.ignored_keys = count);
        }
    }

    /// Whether it may use the persona of this name.
    #[must_use]
    pub fn may_use(&self, persona: &str) -> bool {
        self.key.as_ref().is_none_or(|key| key.may_use(persona))
    }

    /// Whether it has admin rights; a caller that needs no key has them.
    #[must_use]
    pub fn is_admin(&self) -> bool {
        self.key
            .as_ref()
            .is_none_or(|key| key.check_admin().is_ok())
    }

    /// # Errors
    /// [`AuthError::PersonaNotAllowed`].
    pub fn check_persona(&self, persona: &str) -> Result<(), AuthError> {
        self.key
            .as_ref()
            .map_or(Ok(()), |key| key.check_persona(persona))
    }

    /// # Errors
    /// [`AuthError::PersonaNotAllowed`].
    pub fn check_base(&self, name: &str) -> Result<(), AuthError> {
        self.key.as_ref().map_or(Ok(()), |key| key.check_base(name))
    }

    /// Checks the scales of a blend that it asks for as `requested`.
    ///
    /// # Errors
    /// [`AuthError::ScaleNotAllowed`].
    pub(super) fn check_scales(&self, requested: &str, scales: &[f32]) -> Result<(), AuthError> {
        let key = self.key.as_ref();
        key.map_or(Ok(()), |key| key.check_scales(requested, scales))
    }

    /// Counts the answers of a request, for all of its prompts, against the key's requests a minute.
    ///
    /// # Errors
    /// [`AuthError::AnswerRateExceeded`].
    pub fn count_answers(&self, answers: usize) -> Result<(), AuthError> {
        let key = self.key.as_ref();
        key.map_or(Ok(()), |key| key.count_answers(answers))
    }

    /// Returns counted answers that were refused for lack of room.
    pub fn refund_answers(&self, answers: usize) {
        if let Some(key) = &self.key {
            key.refund_requests(answers);
        }
    }

    /// The persona and version that `part` names.
    ///
    /// # Errors
    /// As [`Personas::find`], without the names of personas that it may not use.
    pub fn find_persona<'p>(
        &self,
        personas: &'p Personas,
        part: &BlendPart,
    ) -> Result<&'p Persona, LookupError> {
        let found = personas.find(part);
        found.map_err(|error| self.without_hidden_names(error))
    }

    /// The same error without the names of personas that it may not use.
    pub(super) fn without_hidden_names(&self, mut error: LookupError) -> LookupError {
        if let LookupError::Unknown { available, .. } = &mut error {
            available.retain(|name| self.may_use(name));
        }
        error
    }

    /// Reserves tokens from the key's rate limit: the prompt once, and each answer at its longest. Returns a reservation for each answer.
    ///
    /// # Errors
    /// [`RequestError::Denied`], if the key does not permit the priority or the limit is reached.
    pub(super) fn admit(
        &self,
        priority: i32,
        prompt: usize,
        max_new_tokens: usize,
        answers: usize,
    ) -> Result<Vec<TokenReservation>, RequestError> {
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
            key.reserve_tokens((prompt + max_new_tokens) as u64)
        });
        // If one is refused, dropping the earlier reservations returns their tokens.
        held.collect::<Result<_, _>>()
            .map_err(|source| RequestError::Denied {
                field: None,
                source,
            })
    }

    /// Whose cached prompts its requests may use: its own, or those of its key's group. None without a key.
    pub(super) fn cache_owner(&self) -> Option<(&'static str, &str)> {
        let key = self.key.as_ref()?;
        Some(match key.cache_group() {
            Some(group) => ("group", group),
            None => ("key", key.name()),
        })
    }

    /// The client for the engine's fair share: one for each key, with the key's weight.
    pub(super) fn client(&self) -> Option<Client> {
        let key = self.key.as_ref()?;
        let mut hasher = DefaultHasher::new();
        key.name().hash(&mut hasher);
        Some(Client {
            id: hasher.finish(),
            weight: NonZeroU32::new(key.share()).unwrap_or(NonZeroU32::MIN),
        })
    }

    /// The request log, if there is one.
    pub(super) fn log(&self) -> Option<Arc<RequestLog>> {
        self.log.clone()
    }
}

/// Only the key's name, never its secret.
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
