//! The names that a persona may have. The registry, API keys and training jobs check them by the same rule.

/// The name that always means the base, so no persona may have it.
pub const BASE: &str = "base";
/// The longest name, in characters.
pub const MAX_PERSONA_NAME: usize = 64;

/// Whether `name` may name a persona: 1 to 64 of a-z, 0-9, `-` and `_`, the first a letter or a digit.
#[must_use]
pub fn is_persona_name(name: &str) -> bool {
    (1..=MAX_PERSONA_NAME).contains(&name.len())
        && name.bytes().enumerate().all(|(i, byte)| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || (i > 0 && b"-_".contains(&byte))
        })
}
