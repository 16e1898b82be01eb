//! What every object of an answer in OpenAI's wire format repeats.

use std::fmt::Write;
use std::hash::{BuildHasher, Hasher, RandomState};

use serde_json::{Value, json};

use crate::events::Usage;
use crate::unix_time::unix_time;
use service::ModelIdentity;

/// Hexadecimal digits of an adapter's hash in a fingerprint.
const HASH_DIGITS: usize = 12;

pub(super) struct Envelope {
    id: String,
    object: &'static str,
    created: u64,
    /// As the request called it.
    model: String,
    fingerprint: String,
}

impl Envelope {
    /// An envelope with an id of its own that begins with `kind`.
    pub fn new(
        kind: &str,
        object: &'static str,
        model: String,
        identity: &ModelIdentity,
    ) -> Envelope {
        Envelope {
            id: random_id(kind),
            object,
            created: unix_time(),
            model,
            fingerprint: fingerprint(identity),
        }
    }

    /// The object with these choices.
    pub fn with(&self, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id,
            "object": self.object,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        })
    }

    /// What ends a stream, with the usage where it is asked for.
    pub fn last(&self, usage: Option<&Usage>) -> Vec<String> {
        let usage = usage.map(|usage| {
            let mut chunk = self.with(Vec::new());
            chunk["usage"] = usage.json();
            chunk.to_string()
        });
        usage.into_iter().chain(["[DONE]".to_owned()]).collect()
    }
}

/// `kind-` and digits that no other has.
pub(super) fn random_id(kind: &str) -> String {
    // The standard library keys every `RandomState` from the system's randomness.
    format!("{kind}-{:016x}", RandomState::new().build_hasher().finish())
}

/// What computed the answer: the base, and each adapter's hash with its scale. Equal requests with equal seeds and
/// fingerprints have equal answers on one machine.
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
    fn ids_differ() {
        assert_ne!(random_id("cmpl"), random_id("cmpl"));
    }
}
