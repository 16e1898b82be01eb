//! The sampling parameters of a persona in JSON and TOML, for `#[serde(with)]`.

use formats::decimal::shortest;
use sampling::{Interface, SamplingParams, Value};
use serde::ser::SerializeMap as _;
use serde::{Deserializer, Serializer};

/// Writes the parameters that are set, with the decimals of floats as a person wrote them.
pub(crate) fn serialize<S: Serializer>(
    params: &SamplingParams,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(params.iter().count()))?;
    for (parameter, value) in params.iter() {
        match value {
            Value::Float(value) => map.serialize_entry(parameter.name, &shortest(value))?,
            Value::Count(value) => map.serialize_entry(parameter.name, &value)?,
            Value::Seed(value) => map.serialize_entry(parameter.name, &value)?,
        }
    }
    map.end()
}

/// Reads the parameters that a persona may set.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<SamplingParams, D::Error> {
    SamplingParams::read(Interface::Persona, deserializer)
}
