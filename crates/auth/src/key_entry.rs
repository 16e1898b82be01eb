//! One key's settings, and the rules for its name and its personas.

use crate::quota::Quotas;
use crate::secret::SecretHash;

/// The longest name of a key, in characters.
pub const MAX_NAME: usize = 64;
/// The smallest sum of scales with which a key that may not use the base may blend personas.
pub const MIN_SCALES: f32 = 0.1;
/// The largest share.
pub const MAX_SHARE: u32 = 100;

/// One key's settings.
#[derive(Debug, Clone)]
pub struct KeyEntry {
    /// The name in logs and messages.
    pub name: String,
    /// The hash of its secret. The secret itself is not stored.
    pub sha256: SecretHash,
    /// The personas that it may use; `*` at the end of a name matches every name with that beginning. None: every persona.
    pub personas: Option<Vec<String>>,
    /// Whether it may use the base without a persona.
    pub base: bool,
    /// Whether it has admin rights.
    pub admin: bool,
    /// Whether it may train. Admin rights include training.
    pub train: bool,
    /// The most requests a minute.
    pub requests_per_minute: Option<u32>,
    /// The most tokens a minute.
    pub tokens_per_minute: Option<u32>,
    /// Its weight among waiting requests, 1 to [`MAX_SHARE`].
    pub share: u32,
    /// How much it may store and queue.
    pub quotas: Quotas,
    /// The group of keys with which it shares the prefix cache; by default none.
    pub cache_group: Option<String>,
}

/// Checks the name of a key.
///
/// # Errors
/// The rule for names, for people.
pub fn check_name(name: &str) -> Result<(), String> {
    let good = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if (1..=MAX_NAME).contains(&name.len()) && name.chars().all(good) {
        return Ok(());
    }
    Err(name_rule())
}

pub(crate) fn name_rule() -> String {
    format!("a key's name has 1 to {MAX_NAME} of a-z, A-Z, 0-9, -, _ and .")
}

/// Checks the name of a group of keys.
///
/// # Errors
/// The rule for such names, for people.
pub fn check_group(name: &str) -> Result<(), String> {
    check_name(name)
        .map_err(|_| format!("a group's name has 1 to {MAX_NAME} of a-z, A-Z, 0-9, -, _ and ."))
}

/// Checks a pattern of [`KeyEntry::personas`]: a persona's name, or the beginning of one and `*`.
///
/// # Errors
/// The rule for patterns, for people.
pub fn check_pattern(pattern: &str) -> Result<(), String> {
    let name = pattern.strip_suffix('*').unwrap_or(pattern);
    if formats::persona_name::is_persona_name(name) || (name.is_empty() && pattern == "*") {
        return Ok(());
    }
    Err(format!(
        "{pattern:?} is not a persona's name; write a name, or the beginning of one and *"
    ))
}
