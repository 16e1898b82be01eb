//! The sampling settings that chats and texts both take, under the same names.

/// [`service::Overrides`] from a request's fields. A macro: serde's `flatten`, which would share the fields themselves, does not
/// go together with refusing unknown ones.
macro_rules! overrides {
    ($request:expr) => {
        service::Overrides {
            temperature: $request.temperature,
            top_p: $request.top_p,
            top_k: $request.top_k,
            min_p: $request.min_p,
            repetition_penalty: $request.repetition_penalty,
            frequency_penalty: $request.frequency_penalty,
            presence_penalty: $request.presence_penalty,
            // Any 64 bits are a seed.
            seed: $request.seed.map(i64::cast_unsigned),
        }
    };
}

pub(super) use overrides;
