//! Writes an f32 to JSON with its shortest decimal: a `serde_json::Value` holds an f64, which would show 0.2 as
//! 0.20000000298023224.

use serde::Serializer;

/// The f64 with the shortest decimal that is `value` when rounded to f32.
#[must_use]
pub fn shortest(value: f32) -> f64 {
    value
        .to_string()
        .parse()
        .unwrap_or_else(|_| f64::from(value))
}

/// For a field's `serialize_with`.
///
/// # Errors
/// The serializer's.
pub fn serialize<S: Serializer>(value: &f32, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(shortest(*value))
}

/// For the `serialize_with` of an optional field.
///
/// # Errors
/// The serializer's.
pub fn serialize_option<S: Serializer>(
    value: &Option<f32>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => serialize(value, serializer),
        None => serializer.serialize_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::shortest;

    #[test]
    fn shortest_decimals_round_trip() {
        assert_eq!(shortest(0.2), 0.2);
        assert_eq!(shortest(0.01), 0.01);
        for value in [f32::MIN_POSITIVE, f32::MAX, 1e-45, -4.0, 3.3, 0.1 + 0.2] {
            assert_eq!(shortest(value) as f32, value);
        }
    }
}
