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
use auth::{AuthError, CountedAnswers, Key, Owner, TokenReservation};

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

    /// The owner of a record, if it may learn it: only a caller with admin rights may.
    #[must_use]
    pub fn shown_owner(&self, owner: Option<String>) -> Option<String> {
        owner.filter(|_| self.is_admin())
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

    /// Checks that the answers of a request, for all of its prompts, are within the key's requests a minute. They count once the
    /// request is admitted.
    ///
    /// # Errors
    /// [`AuthError::AnswerRateExceeded`].
    pub fn check_answers(&self, answers: usize) -> Result<(), AuthError> {
        let key = self.key.as_ref();
        key.map_or(Ok(()), |key| key.check_answers(answers))
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

    /// Checks that the key permits the priority.
    ///
    /// # Errors
    /// [`RequestError::Denied`].
    pub(super) fn check_priority(&self, priority: i32) -> Result<(), RequestError> {
        let key = self.key.as_ref();
        key.map_or(Ok(()), |key| key.check_priority(priority))
            .map_err(|source| RequestError::Denied {
                field: Some("priority"),
                source,
            })
    }

    /// Counts the answers of a request, for all of its prompts, against the key's limits a minute: `tokens` has the most that each
    /// answer may take, with its prompt if it is the prompt's first.
    ///
    /// # Errors
    /// [`RequestError::Denied`]; nothing is counted then.
    pub(super) fn admit(&self, tokens: &[u64]) -> Result<Admission, RequestError> {
        let Some(key) = &self.key else {
            return Ok(Admission::default());
        };
        let admit = || {
            Ok(Admission {
                reservations: key.reserve_tokens(tokens)?.into_iter(),
                answers: key.count_answers(tokens.len())?,
            })
        };
        admit().map_err(|source| RequestError::Denied {
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
    #[must_use]
    pub fn log(&self) -> Option<Arc<RequestLog>> {
        self.log.clone()
    }
}

/// What a request that is being admitted has taken from its key's limits a minute. Dropping it returns all of it.
#[derive(Debug, Default)]
pub(super) struct Admission {
    /// One for each answer; none without a limit.
    pub reservations: std::vec::IntoIter<TokenReservation>,
    /// The answers; kept when the request is queued.
    pub answers: CountedAnswers,
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
