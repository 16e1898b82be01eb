//! Reads parameters with serde, whatever the format.

use std::fmt;

use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, Error, MapAccess, Unexpected, Visitor,
};
use std::sync::OnceLock;

use crate::{Interface, Kind, Parameter, SamplingParams, Value};

impl Interface {
    /// The names of the parameters that it accepts, in the table's order.
    #[must_use]
    pub fn names(self) -> &'static [&'static str] {
        static NAMES: [OnceLock<Vec<&'static str>>; 3] = [const { OnceLock::new() }; 3];
        let names = || self.parameters().map(|parameter| parameter.name).collect();
        NAMES[self as usize].get_or_init(names)
    }
}

impl SamplingParams {
    /// Reads an object whose keys are parameters that `interface` accepts, for a field's `deserialize_with`.
    ///
    /// # Errors
    /// Those of the format; a key that is not such a parameter, or is there twice.
    pub fn read<'de, D: Deserializer<'de>>(
        interface: Interface,
        deserializer: D,
    ) -> Result<SamplingParams, D::Error> {
        struct Params(Interface);
        impl<'de> Visitor<'de> for Params {
            type Value = SamplingParams;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of sampling parameters")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<SamplingParams, A::Error> {
                let mut params = SamplingParams::default();
                let mut seen = Vec::new();
                while let Some(parameter) = map.next_key_seed(ParameterName(self.0))? {
                    if seen.contains(&parameter.name) {
                        return Err(A::Error::duplicate_field(parameter.name));
                    }
                    seen.push(parameter.name);
                    params.read_value(parameter, self.0, &mut map)?;
                }
                Ok(params)
            }
        }
        deserializer.deserialize_map(Params(interface))
    }

    /// Reads the value of `parameter`, which comes next in `map`. Null sets nothing.
    ///
    /// # Errors
    /// Those of the format.
    pub fn read_value<'de, A: MapAccess<'de>>(
        &mut self,
        parameter: &Parameter,
        interface: Interface,
        map: &mut A,
    ) -> Result<(), A::Error> {
        let value = match (parameter.kind, interface) {
            (Kind::Float(_), _) => map.next_value::<Option<f32>>()?.map(Value::Float),
            (Kind::Count, Interface::OpenAi) => map
                .next_value::<Option<CountOrAll>>()?
                .map(|CountOrAll(count)| Value::Count(count)),
            (Kind::Count, _) => map.next_value::<Option<usize>>()?.map(Value::Count),
            // OpenAI's seed is signed; any 64 bits are a seed.
            (Kind::Seed, Interface::OpenAi) => map
                .next_value::<Option<i64>>()?
                .map(|seed| Value::Seed(seed.cast_unsigned())),
            (Kind::Seed, _) => map.next_value::<Option<u64>>()?.map(Value::Seed),
        };
        if let Some(value) = value {
            self.set(parameter.name, value);
        }
        Ok(())
    }
}

/// A count, of which 0 means no limit, and so does -1, as in vLLM.
struct CountOrAll(usize);

impl<'de> Deserialize<'de> for CountOrAll {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_i64(CountOrAllVisitor)
    }
}

struct CountOrAllVisitor;

impl Visitor<'_> for CountOrAllVisitor {
    type Value = CountOrAll;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a whole number from 0, or -1 for no limit")
    }

    fn visit_u64<E: Error>(self, count: u64) -> Result<CountOrAll, E> {
        let out_of_range = |_| E::invalid_value(Unexpected::Unsigned(count), &self);
        usize::try_from(count).map(CountOrAll).map_err(out_of_range)
    }

    fn visit_i64<E: Error>(self, count: i64) -> Result<CountOrAll, E> {
        match u64::try_from(count) {
            Ok(count) => self.visit_u64(count),
            Err(_) if count == -1 => Ok(CountOrAll(0)),
            Err(_) => Err(E::invalid_value(Unexpected::Signed(count), &self)),
        }
    }
}

/// Reads the name of a parameter that the interface accepts.
struct ParameterName(Interface);

impl<'de> DeserializeSeed<'de> for ParameterName {
    type Value = &'static Parameter;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_identifier(self)
    }
}

impl Visitor<'_> for ParameterName {
    type Value = &'static Parameter;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a sampling parameter")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<&'static Parameter, E> {
        let unknown = || E::unknown_field(name, self.0.names());
        self.0.parameter(name).ok_or_else(unknown)
    }
}
