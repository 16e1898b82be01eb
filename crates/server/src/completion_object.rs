//! The objects of OpenAI's wire formats for completions, whole and in chunks.

use std::fmt::Write;
use std::hash::{BuildHasher, Hasher, RandomState};

use serde::Serialize;
use utoipa::ToSchema;

use crate::answer_stream::event_data;
use crate::unix_time::unix_time;
use crate::usage::Usage;
use service::ModelIdentity;

/// The number of hexadecimal digits of an adapter's hash in a fingerprint.
const HASH_DIGITS: usize = 12;

/// An object of OpenAI's wire format: a completion, or a chunk of one.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Completion<C> {
    id: String,
    /// `chat.completion` or `text_completion`; of a chunk `chat.completion.chunk` or `text_completion`.
    object: &'static str,
    /// A Unix time.
    created: u64,
    model: String,
    system_fingerprint: String,
    choices: Vec<C>,
    /// Chunks have it only on request, and only the last one is not null.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required, value_type = Usage)]
    usage: Option<Option<Usage>>,
}

/// The fields that all chunks of a completion have in common.
pub(crate) struct CompletionMetadata {
    id: String,
    object: &'static str,
    created: u64,
    /// The model as the request named it.
    model: String,
    fingerprint: String,
}

impl CompletionMetadata {
    /// Metadata with a new id that starts with `kind`.
    pub fn new(
        kind: &str,
        object: &'static str,
        model: String,
        identity: &ModelIdentity,
    ) -> CompletionMetadata {
        CompletionMetadata {
            id: random_id(kind),
            object,
            created: unix_time(),
            model,
            fingerprint: fingerprint(identity),
        }
    }

    fn with<C>(&self, choices: Vec<C>, usage: Option<Option<Usage>>) -> Completion<C> {
        Completion {
            id: self.id.clone(),
            object: self.object,
            created: self.created,
            model: self.model.clone(),
            system_fingerprint: self.fingerprint.clone(),
            choices,
            usage,
        }
    }

    /// A whole completion.
    pub fn completion<C>(&self, choices: Vec<C>, usage: Usage) -> Completion<C> {
        self.with(choices, Some(Some(usage)))
    }

    /// A chunk with one choice. If the stream ends with the usage, its other chunks have a null.
    pub fn chunk<C: Serialize>(&self, choice: C, with_usage: bool) -> String {
        event_data(&self.with(vec![choice], with_usage.then_some(None)))
    }

    /// The events at the end of a stream, with the usage if it was requested.
    pub fn last(&self, usage: Option<&Usage>) -> Vec<String> {
        let usage = usage.map(|usage| event_data(&self.with::<()>(Vec::new(), Some(Some(*usage)))));
        usage.into_iter().chain(["[DONE]".to_owned()]).collect()
    }
}

/// `kind-` and random digits.
pub(super) fn random_id(kind: &str) -> String {
    // The standard library seeds every `RandomState` from the system's randomness.
    format!("{kind}-{:016x}", RandomState::new().build_hasher().finish())
}

/// Identifies what computed the answer: the base, and each adapter's hash with its scale. On one machine equal requests with equal
/// seeds and fingerprints have equal answers.
fn fingerprint(identity: &ModelIdentity) -> String {
    let mut text = identity.base.clone();
    for adapter in &identity.adapters {
        let hash = adapter.id.to_string();
        let _ = write!(text, "+{}*{}", &hash[..HASH_DIGITS], adapter.scale);
    }
    text
}

#[cfg(test)]
mod tests {
    use engine::AdapterId;

    use super::*;
    use service::AdapterUse;

    #[test]
    fn a_fingerprint_names_the_base_and_every_adapter() {
        let mut identity = ModelIdentity {
            base: "tiny".to_owned(),
            name: "a+b".to_owned(),
            version: None,
            adapters: Vec::new(),
        };
        assert_eq!(fingerprint(&identity), "tiny");
        for (byte, scale) in [(0xab, 1.0), (0x01, 0.3)] {
            let id = AdapterId([byte; 32]);
            identity.adapters.push(AdapterUse { id, scale });
        }
        assert_eq!(
            fingerprint(&identity),
            "tiny+abababababab*1+010101010101*0.3"
        );
    }

    #[test]
    fn ids_are_unique() {
        assert_ne!(random_id("cmpl"), random_id("cmpl"));
    }
}
