//! The limits of a request's fields, and the names that an interface gives them.

/// The most stop strings of a request.
pub const MAX_STOPS: usize = 4;
/// The longest stop string, in bytes.
pub const MAX_STOP_BYTES: usize = 256;
/// The most answers to one request.
pub const MAX_CHOICES: usize = 8;
/// The longest `cache_salt`, in bytes.
pub const MAX_CACHE_SALT: usize = 256;
/// The most log-probabilities in one response, alternatives included. Each takes 8 bytes until the answer ends, and some 70 bytes of
/// JSON.
pub const MAX_LOGPROBS: usize = 250_000;
/// The longest `timeout_ms`: a day.
pub const MAX_TIMEOUT_MS: u64 = 24 * 60 * 60 * 1000;

/// The names that errors use for the fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FieldNames {
    /// The persona.
    pub persona: &'static str,
    /// The prompt.
    pub prompt: &'static str,
    /// The most new tokens.
    pub max_new_tokens: &'static str,
}

impl FieldNames {
    /// The names in `POST /generate`.
    pub const GENERATE: FieldNames = FieldNames {
        persona: "user_type",
        prompt: "prompt",
        max_new_tokens: "max_new_tokens",
    };
}
