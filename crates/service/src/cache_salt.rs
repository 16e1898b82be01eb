//! Who may share the cached blocks of a prompt. `cached_tokens` and the time to the first token show what is cached, so a key that
//! shared blocks with another could guess that one's prompts piece by piece.
//!
//! A key shares with its group only. What the operator wrote, the persona's system prompt and the template around it, is shared by
//! all keys that use the persona. A server without keys has one shared cache. A request's `cache_salt` separates it further.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use base::Base;
use engine::CacheSalt;
use sha2::{Digest as _, Sha256};

use crate::persona_resolution::ResolvedPersona;
use crate::prompt;
use crate::request::GenerateRequest;

/// The most prefixes that are remembered.
const MAX_PREFIXES: usize = 256;

/// The tokens of system prompts with the template around them, by the hash of the system prompt.
#[derive(Default)]
pub(super) struct OperatorPrefixes(Mutex<HashMap<u128, Arc<[u32]>>>);

impl OperatorPrefixes {
    /// How many of the prompt's first tokens are those of any request with this system prompt.
    fn shared_tokens(&self, base: &Base, system: Option<&str>, prompt: &[u32]) -> usize {
        let key = hash(&[
            if system.is_some() { "system" } else { "" },
            system.unwrap_or(""),
        ]);
        let known = self.lock().get(&key).cloned();
        let prefix = known.unwrap_or_else(|| {
            let prefix: Arc<[u32]> = prompt::operator_prefix(base, system).into();
            let mut prefixes = self.lock();
            if prefixes.len() >= MAX_PREFIXES {
                prefixes.clear();
            }
            prefixes.insert(key, Arc::clone(&prefix));
            prefix
        });
        let equal = prefix.iter().zip(prompt).take_while(|(a, b)| a == b);
        equal.count()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u128, Arc<[u32]>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The salt of a request whose prompt has these tokens.
pub(super) fn of(
    base: &Base,
    prefixes: &OperatorPrefixes,
    persona: &ResolvedPersona<'_>,
    request: &GenerateRequest,
    prompt: &[u32],
) -> CacheSalt {
    let owner = request.caller.cache_owner();
    let salt = request.cache_salt.as_deref();
    if owner.is_none() && salt.is_none() {
        return CacheSalt::default();
    }
    let (kind, name) = owner.unwrap_or_default();
    // With variables of the request the system prompt is not the operator's alone.
    let is_operators = request.has_template() && request.variables.is_empty();
    CacheSalt {
        shared_tokens: match is_operators {
            true => prefixes.shared_tokens(base, persona.system_prompt.as_deref(), prompt),
            false => 0,
        },
        // Not by the prompt's text: another persona with a guessed text must not find it.
        shared: owner.map(|_| hash(&["persona", &persona.identity.name])),
        own: Some(hash(&[kind, name, salt.unwrap_or("")])),
    }
}

/// The first 128 bits of the SHA-256 of several texts.
fn hash(texts: &[&str]) -> u128 {
    let mut hasher = Sha256::new();
    for text in texts {
        hasher.update((text.len() as u64).to_le_bytes());
        hasher.update(text);
    }
    let mut first = [0; 16];
    first.copy_from_slice(&hasher.finalize()[..16]);
    u128::from_le_bytes(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_salts_do_not_run_together() {
        let all = [
            hash(&["key", "a", ""]),
            hash(&["group", "a", ""]),
            hash(&["key", "a", "b"]),
            hash(&["key", "ab", ""]),
            hash(&["keya", "", "b"]),
            hash(&["", "", "b"]),
        ];
        for (i, one) in all.iter().enumerate() {
            assert!(!all[i + 1..].contains(one));
        }
    }
}
