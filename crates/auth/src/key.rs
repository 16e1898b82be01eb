//! One key in force: what it permits, and what it has left of its limits a minute.

use std::sync::Arc;
use std::time::{Duration, Instant};

use formats::persona_name::is_persona_name;

use crate::error::AuthError;
use crate::key_entry::{KeyEntry, MAX_NAME, MIN_SCALES};
use crate::quota::Owner;
use crate::rate_limit::RateLimiter;
use crate::secret::SecretHash;

/// One key: its settings, and the requests and tokens that it has left this minute.
#[derive(Debug)]
pub struct Key {
    entry: KeyEntry,
    requests: Option<Arc<RateLimiter>>,
    tokens: Option<Arc<RateLimiter>>,
}

impl Key {
    /// A key with these settings. It continues with what `before`, the same key until now, has left of limits that are unchanged.
    pub(crate) fn new(entry: KeyEntry, before: Option<&Key>) -> Key {
        // Reloading the file does not refill the limits.
        let bucket = |limit: Option<u32>, before: Option<&Arc<RateLimiter>>| {
            let limit = limit?;
            let same = before.filter(|bucket| bucket.per_minute() == limit);
            Some(
                same.cloned()
                    .unwrap_or_else(|| Arc::new(RateLimiter::new(limit))),
            )
        };
        Key {
            requests: bucket(
                entry.requests_per_minute,
                before.and_then(|key| key.requests.as_ref()),
            ),
            tokens: bucket(
                entry.tokens_per_minute,
                before.and_then(|key| key.tokens.as_ref()),
            ),
            entry,
        }
    }

    /// The hash of its secret.
    pub(crate) fn sha256(&self) -> &SecretHash {
        &self.entry.sha256
    }

    /// Its weight among waiting requests.
    #[must_use]
    pub fn share(&self) -> u32 {
        self.entry.share
    }

    /// The group of keys with which it shares the prefix cache; by default no other key.
    #[must_use]
    pub fn cache_group(&self) -> Option<&str> {
        self.entry.cache_group.as_deref()
    }

    /// Its name in logs.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.entry.name
    }

    /// The owner of its records, with its quotas.
    #[must_use]
    pub fn owner(&self) -> Owner {
        Owner::key(&self.entry.name, self.entry.quotas)
    }

    /// A name that it may use for a new persona: `name` itself, or `name` after the beginning of one of its patterns.
    #[must_use]
    pub fn new_persona_name(&self, name: &str) -> Option<String> {
        let patterns = self.entry.personas.iter().flatten();
        let beginnings = patterns.filter_map(|pattern| pattern.strip_suffix('*'));
        [""].into_iter()
            .chain(beginnings)
            .map(|beginning| format!("{beginning}{name}"))
            .find(|name| is_persona_name(name) && self.may_use(name))
    }

    /// Whether it may use the persona of this name.
    #[must_use]
    pub fn may_use(&self, persona: &str) -> bool {
        let matches = |pattern: &String| match pattern.strip_suffix('*') {
            Some(beginning) => persona.starts_with(beginning),
            None => persona == pattern,
        };
        self.entry
            .personas
            .as_ref()
            .is_none_or(|patterns| patterns.iter().any(matches))
    }

    /// Checks that it may use a persona.
    ///
    /// # Errors
    /// [`AuthError::PersonaNotAllowed`].
    pub fn check_persona(&self, persona: &str) -> Result<(), AuthError> {
        if self.may_use(persona) {
            return Ok(());
        }
        Err(self.persona_error(persona))
    }

    /// Checks that it may use the base without a persona. `name` is the base's name.
    ///
    /// # Errors
    /// [`AuthError::PersonaNotAllowed`].
    pub fn check_base(&self, name: &str) -> Result<(), AuthError> {
        if self.entry.base {
            return Ok(());
        }
        Err(self.persona_error(name))
    }

    /// Checks the scales of a blend, in the order of its personas. Scales that cancel the adapters give the base, so a key that may
    /// not use it needs scales above 0, at least [`MIN_SCALES`] in sum.
    ///
    /// # Errors
    /// [`AuthError::ScaleNotAllowed`]. `requested` is the blend as the request names it.
    pub fn check_scales(&self, requested: &str, scales: &[f32]) -> Result<(), AuthError> {
        let far =
            scales.iter().all(|scale| *scale > 0.0) && scales.iter().sum::<f32>() >= MIN_SCALES;
        if self.entry.base || far {
            return Ok(());
        }
        Err(AuthError::ScaleNotAllowed {
            key: self.entry.name.clone(),
            requested: requested.chars().take(MAX_NAME).collect(),
        })
    }

    fn persona_error(&self, requested: &str) -> AuthError {
        let mut may: Vec<&str> = match &self.entry.personas {
            Some(personas) => personas.iter().map(String::as_str).collect(),
            None => vec!["every persona"],
        };
        if self.entry.base {
            may.push("the base");
        }
        AuthError::PersonaNotAllowed {
            key: self.entry.name.clone(),
            requested: requested.chars().take(MAX_NAME).collect(),
            may: match may.is_empty() {
                true => "nothing".to_owned(),
                false => may.join(", "),
            },
        }
    }

    /// Checks that it has admin rights.
    ///
    /// # Errors
    /// [`AuthError::AdminOnly`].
    pub fn check_admin(&self) -> Result<(), AuthError> {
        if self.entry.admin {
            return Ok(());
        }
        let key = self.entry.name.clone();
        Err(AuthError::AdminOnly { key })
    }

    /// Checks that it may train.
    ///
    /// # Errors
    /// [`AuthError::TrainingNotAllowed`].
    pub fn check_train(&self) -> Result<(), AuthError> {
        if self.entry.train || self.entry.admin {
            return Ok(());
        }
        let key = self.entry.name.clone();
        Err(AuthError::TrainingNotAllowed { key })
    }

    /// Checks that it may use a priority. Requests with a lower number run first; below 0 needs admin rights.
    ///
    /// # Errors
    /// [`AuthError::PriorityNotAllowed`].
    pub fn check_priority(&self, priority: i32) -> Result<(), AuthError> {
        if priority >= 0 || self.entry.admin {
            return Ok(());
        }
        let key = self.entry.name.clone();
        Err(AuthError::PriorityNotAllowed { key })
    }

    /// Counts a request against the limit.
    ///
    /// # Errors
    /// [`AuthError::RequestRateExceeded`].
    pub fn count_request(&self) -> Result<(), AuthError> {
        let Some(bucket) = &self.requests else {
            return Ok(());
        };
        bucket
            .try_acquire(1, Instant::now())
            .map_err(|retry_after| AuthError::RequestRateExceeded {
                key: self.entry.name.clone(),
                limit: bucket.per_minute(),
                retry_after,
            })
    }

    /// Checks that [`Key::count_answers`] would succeed now. Counts nothing.
    ///
    /// # Errors
    /// [`AuthError::AnswerRateExceeded`].
    pub fn check_answers(&self, answers: usize) -> Result<(), AuthError> {
        let Some(bucket) = &self.requests else {
            return Ok(());
        };
        bucket
            .has_room(1, further(answers), Instant::now())
            .map_err(|retry_after| self.answer_rate_error(bucket, answers, retry_after))
    }

    /// Counts a request's answers against the limit: all but the one that [`Key::count_request`] counted. Dropping the count returns
    /// it, unless it is kept.
    ///
    /// # Errors
    /// [`AuthError::AnswerRateExceeded`].
    pub fn count_answers(&self, answers: usize) -> Result<CountedAnswers, AuthError> {
        let Some(bucket) = &self.requests else {
            return Ok(CountedAnswers::default());
        };
        let further = further(answers);
        bucket
            .try_acquire_more(1, further, Instant::now())
            .map_err(|retry_after| self.answer_rate_error(bucket, answers, retry_after))?;
        Ok(CountedAnswers {
            bucket: Some(Arc::clone(bucket)),
            count: further,
        })
    }

    fn answer_rate_error(
        &self,
        bucket: &RateLimiter,
        answers: usize,
        retry_after: Duration,
    ) -> AuthError {
        AuthError::AnswerRateExceeded {
            key: self.entry.name.clone(),
            limit: bucket.per_minute(),
            answers,
            retry_after,
        }
    }

    /// Returns a counted request that was refused before any work for it began.
    pub fn refund_request(&self) {
        if let Some(bucket) = &self.requests {
            bucket.refund(1);
        }
    }

    /// Reserves tokens of this minute's limit for the answers of one request: a reservation for each amount of `wanted`, or none.
    /// Dropping a reservation returns what was not used of it. A single answer may take more than the limit, once the limit is
    /// untouched.
    ///
    /// # Errors
    /// [`AuthError::AnswersAboveTokenLimit`] if several answers need more than the limit together, which waiting does not change;
    /// [`AuthError::TokenRateExceeded`].
    pub fn reserve_tokens(&self, wanted: &[u64]) -> Result<Vec<TokenReservation>, AuthError> {
        let Some(bucket) = &self.tokens else {
            return Ok(Vec::new());
        };
        let (limit, sum) = (bucket.per_minute(), wanted.iter().sum());
        if wanted.len() > 1 && sum > u64::from(limit) {
            return Err(AuthError::AnswersAboveTokenLimit {
                key: self.entry.name.clone(),
                limit,
                wanted: sum,
                answers: wanted.len(),
            });
        }
        bucket
            .try_acquire(sum, Instant::now())
            .map_err(|retry_after| AuthError::TokenRateExceeded {
                key: self.entry.name.clone(),
                limit,
                wanted: sum,
                retry_after,
            })?;
        let reservation = |tokens: &u64| TokenReservation {
            bucket: Some(Arc::clone(bucket)),
            tokens: *tokens,
        };
        Ok(wanted.iter().map(reservation).collect())
    }
}

/// The answers that count in addition to the request itself.
fn further(answers: usize) -> u64 {
    (answers as u64).saturating_sub(1)
}

/// The answers of a request that is not admitted yet. Dropping it returns them to the key's limit.
#[derive(Debug, Default)]
#[must_use = "dropping the count returns the answers"]
pub struct CountedAnswers {
    bucket: Option<Arc<RateLimiter>>,
    count: u64,
}

impl CountedAnswers {
    /// The request was admitted: its answers stay counted.
    pub fn keep(mut self) {
        self.bucket = None;
    }
}

impl Drop for CountedAnswers {
    fn drop(&mut self) {
        if let Some(bucket) = &self.bucket {
            bucket.refund(self.count);
        }
    }
}

/// Tokens that a request may use. Dropping it returns those that were not used.
#[derive(Debug, Default)]
#[must_use = "dropping the reservation returns the tokens"]
pub struct TokenReservation {
    bucket: Option<Arc<RateLimiter>>,
    tokens: u64,
}

impl TokenReservation {
    /// Records that `tokens` of them were used.
    pub fn used(&mut self, tokens: u64) {
        self.tokens = self.tokens.saturating_sub(tokens);
    }
}

impl Drop for TokenReservation {
    fn drop(&mut self) {
        if let Some(bucket) = &self.bucket {
            bucket.refund(self.tokens);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key_file;

    fn key(more: &str) -> Key {
        let sha256 = SecretHash::of("secret");
        let text = format!("[[key]]\nname = 'a'\nsha256 = '{sha256}'\n{more}\n");
        Key::new(key_file::parse("keys", &text).unwrap().remove(0), None)
    }

    #[test]
    fn key_may_use_only_its_personas() {
        let (a, b) = (
            key("personas = ['customer', 'acme-*']"),
            key("base = false"),
        );
        for (persona, may) in [
            ("customer", true),
            ("acme-warm", true),
            ("acme", false),
            ("customers", false),
        ] {
            assert_eq!(a.may_use(persona), may, "{persona}");
            assert!(b.may_use(persona));
        }
        let denied = a.check_base("tiny").unwrap_err().to_string();
        assert_eq!(
            denied,
            "key a may not use \"tiny\"; it may use customer, acme-*"
        );
        assert!(b.check_base("tiny").is_err() && b.check_admin().is_err());
        assert!(a.check_priority(0).is_ok() && a.check_priority(-1).is_err());
    }

    #[test]
    fn name_of_a_new_persona_is_within_the_patterns() {
        let name = |more| key(more).new_persona_name("ft-1");
        assert_eq!(
            name("personas = ['customer', 'acme-*']").as_deref(),
            Some("acme-ft-1")
        );
        assert_eq!(name("personas = ['customer']"), None);
        assert_eq!(name("").as_deref(), Some("ft-1"));
    }

    #[test]
    fn every_answer_counts_against_the_request_limit() {
        let key = key("requests_per_minute = 10");
        key.count_request().unwrap();
        key.count_answers(8).unwrap().keep();
        key.count_request().unwrap();
        let refused = key.count_answers(8).unwrap_err();
        assert!(refused.retry_after() > Some(Duration::from_secs(30)));
        let said = refused.to_string();
        assert!(
            said.contains("10 requests a minute") && said.contains("8 answers"),
            "{said}"
        );
        // One that is larger than the limit is granted when the limit is untouched.
        let key = super::tests::key("requests_per_minute = 10");
        key.count_request().unwrap();
        key.check_answers(128).unwrap();
        key.count_answers(128).unwrap().keep();
        assert!(key.count_request().is_err());
    }

    #[test]
    fn refused_requests_are_returned() {
        let key = key("requests_per_minute = 10");
        for _ in 0..20 {
            key.count_request().unwrap();
            let counted = key.count_answers(10).unwrap();
            assert!(key.count_request().is_err());
            drop(counted);
            key.refund_request();
        }
    }

    #[test]
    fn key_without_base_may_not_reach_it_by_scales() {
        let (a, b) = (key("base = false"), key("base = true"));
        for scales in [
            &[0.0][..],
            &[-1.0],
            &[1.0, 0.0],
            &[1.0, -1.0],
            &[0.01, 0.01],
            &[f32::NAN],
        ] {
            assert!(a.check_scales("x", scales).is_err(), "{scales:?}");
            assert!(b.check_scales("x", scales).is_ok());
        }
        for scales in [&[1.0][..], &[0.1], &[0.05, 0.05], &[4.0, 0.5]] {
            assert!(a.check_scales("x", scales).is_ok(), "{scales:?}");
        }
        let said = a
            .check_scales("customer*0", &[0.0])
            .unwrap_err()
            .to_string();
        assert!(said.contains("\"customer*0\" comes close to it"), "{said}");
    }

    #[test]
    fn unused_tokens_are_returned() {
        let key = key("tokens_per_minute = 600");
        let mut reservation = key.reserve_tokens(&[600]).unwrap().remove(0);
        assert!(key.reserve_tokens(&[200]).is_err());
        reservation.used(350);
        drop(reservation);
        assert!(key.reserve_tokens(&[260]).is_err());
        let _reservation = key.reserve_tokens(&[200]).unwrap();
    }

    #[test]
    fn answers_that_need_more_than_the_limit_together_are_refused_for_good() {
        let key = key("tokens_per_minute = 600");
        let refused = key.reserve_tokens(&[250, 200, 200]).unwrap_err();
        assert_eq!(refused.retry_after(), None);
        assert_eq!(
            refused.to_string(),
            "key a may use 600 tokens a minute, and this request's 3 answers may take 650 together with their prompts; ask for \
             fewer answers, or for fewer new tokens in each"
        );
        // It took nothing, and answers are reserved all at once or not at all.
        let held = key.reserve_tokens(&[200, 200, 200]).unwrap();
        assert_eq!(held.len(), 3);
        drop(held);
        let first = key.reserve_tokens(&[300]).unwrap();
        let refused = key.reserve_tokens(&[200, 200]).unwrap_err();
        assert!(refused.retry_after() > Some(Duration::from_secs(5)));
        drop(first);
        // One answer above the limit leaves a debt.
        drop(key.reserve_tokens(&[900]).unwrap());
    }
}
