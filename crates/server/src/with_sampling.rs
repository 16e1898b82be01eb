//! Request bodies with sampling parameters among their fields. The parameters come from the table in [`sampling`]: here they are
//! read out of a body, and added to its schema.

use std::fmt;

use sampling::{Interface, Kind, Parameter, SamplingParams};
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use utoipa::openapi::schema::{KnownFormat, ObjectBuilder, Schema, SchemaFormat, SchemaType, Type};
use utoipa::openapi::{OpenApi, RefOr};

/// A request that takes the sampling parameters of an interface next to its own fields.
pub(super) trait AcceptsSampling {
    /// The interface.
    const INTERFACE: Interface;
}

/// A body: the request's own fields and its sampling parameters. Unlike serde's `flatten`, it refuses unknown fields.
pub(super) struct WithSampling<T> {
    pub request: T,
    pub sampling: SamplingParams,
}

impl<'de, T: Deserialize<'de> + AcceptsSampling> Deserialize<'de> for WithSampling<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut sampling = SamplingParams::default();
        let request = T::deserialize(Fields {
            inner: deserializer,
            interface: T::INTERFACE,
            sampling: &mut sampling,
        })?;
        Ok(WithSampling { request, sampling })
    }
}

/// The deserializer of the request: takes the sampling parameters out and passes the other fields on.
struct Fields<'s, D> {
    inner: D,
    interface: Interface,
    sampling: &'s mut SamplingParams,
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Fields<'_, D> {
    type Error = D::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_any(visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        own: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let visitor = FieldsVisitor {
            visitor,
            own,
            interface: self.interface,
            sampling: self.sampling,
        };
        self.inner.deserialize_struct(name, own, visitor)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

struct FieldsVisitor<'s, V> {
    visitor: V,
    own: &'static [&'static str],
    interface: Interface,
    sampling: &'s mut SamplingParams,
}

impl<'de, V: Visitor<'de>> Visitor<'de> for FieldsVisitor<'_, V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.visitor.expecting(f)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<V::Value, A::Error> {
        self.visitor.visit_seq(seq)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<V::Value, A::Error> {
        self.visitor.visit_map(OwnFields {
            map,
            own: self.own,
            interface: self.interface,
            sampling: self.sampling,
            seen: Vec::new(),
        })
    }
}

/// The fields of the request itself.
struct OwnFields<'s, A> {
    map: A,
    own: &'static [&'static str],
    interface: Interface,
    sampling: &'s mut SamplingParams,
    /// The parameters so far.
    seen: Vec<&'static str>,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for OwnFields<'_, A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, A::Error> {
        while let Some(name) = self.map.next_key::<String>()? {
            if let Some(parameter) = self.interface.parameter(&name) {
                if self.seen.contains(&parameter.name) {
                    return Err(A::Error::duplicate_field(parameter.name));
                }
                self.seen.push(parameter.name);
                self.sampling
                    .read_value(parameter, self.interface, &mut self.map)?;
            } else if self.own.contains(&name.as_str()) {
                let name = serde::de::value::StringDeserializer::new(name);
                return seed.deserialize(name).map(Some);
            } else {
                return Err(unknown_field(&name, self.own, self.interface));
            }
        }
        Ok(None)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        self.map.next_value_seed(seed)
    }
}

/// As [`serde::de::Error::unknown_field`], which takes a static list only.
fn unknown_field<E: Error>(name: &str, own: &[&str], interface: Interface) -> E {
    let all = own.iter().chain(interface.names());
    let all: Vec<String> = all.map(|name| format!("`{name}`")).collect();
    E::custom(format!(
        "unknown field `{name}`, expected one of {}",
        all.join(", ")
    ))
}

/// Adds the sampling parameters to the schemas of the bodies that take them.
pub(super) fn describe(document: &mut OpenApi) {
    let Some(components) = &mut document.components else {
        return;
    };
    for (name, interface) in [
        ("GenerateRequest", Interface::Generate),
        ("ChatRequest", Interface::OpenAi),
        ("CompletionRequest", Interface::OpenAi),
        ("SamplingShape", Interface::Persona),
    ] {
        if let Some(RefOr::T(Schema::Object(schema))) = components.schemas.get_mut(name) {
            for parameter in interface.parameters() {
                let described = described(parameter, interface);
                schema
                    .properties
                    .insert(parameter.name.to_owned(), described.into());
            }
        }
    }
}

fn described(parameter: &Parameter, interface: Interface) -> ObjectBuilder {
    let of = |kind| SchemaType::from_iter([kind, Type::Null]);
    let format = |format| Some(SchemaFormat::KnownFormat(format));
    let is_persona = interface == Interface::Persona;
    let schema = ObjectBuilder::new().description(Some(parameter.help));
    match parameter.kind {
        Kind::Float(range) if is_persona => {
            let schema = schema
                .schema_type(of(Type::Number))
                .format(format(KnownFormat::Double))
                .maximum(Some(exact(range.high)));
            match range.includes_low {
                true => schema.minimum(Some(exact(range.low))),
                false => schema.exclusive_minimum(Some(exact(range.low))),
            }
        }
        Kind::Float(_) => schema
            .schema_type(of(Type::Number))
            .format(format(KnownFormat::Float)),
        Kind::Count => {
            // OpenAI's clients may send -1 for no limit.
            let lowest = if interface == Interface::OpenAi {
                -1
            } else {
                0
            };
            let schema = schema.schema_type(of(Type::Integer)).minimum(Some(lowest));
            match is_persona {
                true => schema.format(format(KnownFormat::Int64)),
                false => schema,
            }
        }
        Kind::Seed => {
            let schema = schema
                .schema_type(of(Type::Integer))
                .format(format(KnownFormat::Int64));
            match interface {
                Interface::OpenAi => schema,
                _ => schema.minimum(Some(0)),
            }
        }
    }
}

/// The decimal as written: whole numbers without a point.
fn exact(value: f32) -> utoipa::Number {
    match value.fract() == 0.0 {
        true => (value as i64).into(),
        false => formats::decimal::shortest(value).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Named {
        name: String,
        #[serde(default)]
        tags: Vec<String>,
    }

    impl AcceptsSampling for Named {
        const INTERFACE: Interface = Interface::Generate;
    }

    fn read(json: &str) -> Result<(Named, SamplingParams), (String, String)> {
        let mut reader = serde_json::Deserializer::from_str(json);
        match serde_path_to_error::deserialize::<_, WithSampling<Named>>(&mut reader) {
            Ok(WithSampling { request, sampling }) => Ok((request, sampling)),
            Err(error) => Err((error.path().to_string(), error.inner().to_string())),
        }
    }

    #[test]
    fn parameters_are_read_in_any_order_among_the_fields() {
        let (named, params) =
            read(r#"{"temperature": 1, "name": "a", "seed": null, "tags": ["b"], "top_k": 3}"#)
                .unwrap();
        assert_eq!((named.name.as_str(), named.tags.len()), ("a", 1));
        let expected = SamplingParams {
            temperature: Some(1.0),
            top_k: Some(3),
            ..SamplingParams::default()
        };
        assert_eq!(params, expected);
    }

    #[test]
    fn errors_are_those_of_a_struct_with_all_fields() {
        for (json, path, message) in [
            (
                r#"{"name": "a", "min_p": 0.1}"#,
                "",
                "unknown field `min_p`, expected one of `name`, `tags`, `temperature`, `top_p`, `top_k`, `seed`",
            ),
            (r#"{"top_k": 3}"#, "", "missing field `name`"),
            (r#"{"name": "a", "top_k": -3}"#, "top_k", "expected usize"),
            (
                r#"{"name": "a", "tags": [5]}"#,
                "tags[0]",
                "expected a string",
            ),
            (
                r#"{"name": "a", "seed": 1, "seed": 2}"#,
                "",
                "duplicate field `seed`",
            ),
            ("5", "", "expected struct Named"),
        ] {
            let (found, text) = read(json).unwrap_err();
            assert!(text.contains(message), "{text}");
            let found = if found == "." { "" } else { &found };
            assert_eq!(found, path, "{text}");
        }
    }
}
