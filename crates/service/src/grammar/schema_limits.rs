//! Looks at a JSON schema before a grammar is made of it, and refuses what makes a small schema slow to compile: patterns that one
//! text must match all at once, numbers that one number must be a multiple of, alternatives that must be combined, and objects
//! with very many properties.

use serde_json::{Map, Value};

/// The most patterns and formats that one text may have to match at once.
const MAX_JOINED: usize = 4;
/// The largest product of the numbers of which one number must be a multiple, in units of their last digit.
const MAX_MULTIPLE: u128 = 1_000_000;
/// The most digits after the point of such a number.
const MAX_DECIMALS: u32 = 6;
/// The most combinations of alternatives that must hold at once.
const MAX_COMBINATIONS: usize = 256;
/// The most properties of a schema, nested ones included, and the most patterns of names of one object.
const MAX_PROPERTIES: usize = 1_000;
const MAX_NAME_PATTERNS: usize = 32;
/// The most places of a schema that are looked at, `$ref`s followed.
const MAX_VISITS: usize = 100_000;
/// The deepest nesting of `$ref`s and combinations at one place.
const MAX_DEPTH: usize = 64;

/// Refuses a schema that is past one of the limits somewhere, with a message for people.
pub(super) fn check(schema: &Value) -> Result<(), String> {
    let mut walk = SchemaWalk {
        root: schema,
        visits: 0,
        properties: 0,
    };
    walk.places(schema)
}

struct SchemaWalk<'a> {
    root: &'a Value,
    visits: usize,
    properties: usize,
}

/// What the parts of a schema that hold at once need together.
#[derive(Clone, Copy)]
struct Joined {
    /// Patterns and formats.
    texts: usize,
    /// The product of all `multipleOf`, as digits and their number after the point.
    multiple: (u128, u32),
    /// Combinations of alternatives, and how many lists of alternatives they come from.
    combinations: usize,
    lists: usize,
}

impl Joined {
    const NONE: Joined = Joined {
        texts: 0,
        multiple: (1, 0),
        combinations: 1,
        lists: 0,
    };

    /// Both hold.
    fn and(self, other: Joined) -> Joined {
        Joined {
            texts: self.texts.saturating_add(other.texts),
            multiple: product(self.multiple, other.multiple),
            combinations: self.combinations.saturating_mul(other.combinations),
            lists: self.lists.saturating_add(other.lists),
        }
    }

    /// One of them holds. The numbers are still multiplied, which is more than is needed.
    fn or(self, other: Joined) -> Joined {
        Joined {
            texts: self.texts.max(other.texts),
            multiple: product(self.multiple, other.multiple),
            combinations: self.combinations.saturating_add(other.combinations),
            lists: self.lists.max(other.lists),
        }
    }

    fn check(self) -> Result<(), String> {
        if self.texts > MAX_JOINED {
            return Err(format!(
                "a text in it must match {} patterns and formats at once; at most {MAX_JOINED} can be joined",
                self.texts
            ));
        }
        if self.multiple.0 > MAX_MULTIPLE {
            return Err(format!(
                "a number in it must be a multiple of numbers whose product has the digits {}; at most {MAX_MULTIPLE} is \
                 compiled; use a smaller multipleOf",
                self.multiple.0
            ));
        }
        if self.lists > 1 && self.combinations > MAX_COMBINATIONS {
            return Err(format!(
                "the lists of alternatives that hold at once have {} combinations; at most {MAX_COMBINATIONS} are compiled",
                self.combinations
            ));
        }
        Ok(())
    }
}

/// The product of two decimal numbers, in units of the last digit of the finer one for each.
fn product(one: (u128, u32), other: (u128, u32)) -> (u128, u32) {
    if one.0 == 1 && one.1 == 0 {
        return other;
    }
    if other.0 == 1 && other.1 == 0 {
        return one;
    }
    let decimals = one.1.max(other.1);
    let scaled = |number: (u128, u32)| {
        let scale = 10u128.saturating_pow(decimals - number.1);
        number.0.saturating_mul(scale)
    };
    (scaled(one).saturating_mul(scaled(other)), decimals)
}

/// The digits of a `multipleOf`, and how many of them are after the point.
fn multiple_of(schema: &Map<String, Value>) -> Result<(u128, u32), String> {
    let Some(mut value) = schema.get("multipleOf").and_then(Value::as_f64) else {
        return Ok((1, 0));
    };
    let given = value;
    let mut decimals = 0;
    // The compiler reads the number in the same way.
    while value.fract() != 0.0 && decimals < MAX_DECIMALS {
        value *= 10.0;
        decimals += 1;
    }
    if value.fract() != 0.0 || value <= 0.0 || value > MAX_MULTIPLE as f64 {
        return Err(format!(
            "multipleOf {given}: numbers above 0 of at most {MAX_DECIMALS} digits after the point and at most {MAX_MULTIPLE} \
             in units of the last one are compiled"
        ));
    }
    Ok((value as u128, decimals))
}

impl<'a> SchemaWalk<'a> {
    /// Looks at every object in the schema as if it were a schema itself.
    fn places(&mut self, value: &'a Value) -> Result<(), String> {
        match value {
            Value::Object(object) => {
                self.joined(object, 0)?.check()?;
                self.count_properties(object)?;
                object.values().try_for_each(|value| self.places(value))
            }
            Value::Array(list) => list.iter().try_for_each(|value| self.places(value)),
            _ => Ok(()),
        }
    }

    fn count_properties(&mut self, schema: &Map<String, Value>) -> Result<(), String> {
        let count = |key: &str| schema.get(key)?.as_object().map(Map::len);
        let patterns = count("patternProperties").unwrap_or(0);
        if patterns > MAX_NAME_PATTERNS {
            return Err(format!(
                "patternProperties has {patterns} patterns; at most {MAX_NAME_PATTERNS} are compiled"
            ));
        }
        self.properties += count("properties").unwrap_or(0);
        if self.properties > MAX_PROPERTIES {
            return Err(format!(
                "it has more than {MAX_PROPERTIES} properties in all; at most {MAX_PROPERTIES} are compiled"
            ));
        }
        Ok(())
    }

    /// What the schema and everything that it refers to need at once.
    fn joined(&mut self, schema: &'a Map<String, Value>, depth: usize) -> Result<Joined, String> {
        self.visits += 1;
        if depth > MAX_DEPTH {
            return Err(format!(
                "its allOf, anyOf, oneOf and $ref are nested more than {MAX_DEPTH} deep"
            ));
        }
        if self.visits > MAX_VISITS {
            return Err(format!(
                "its allOf, anyOf, oneOf and $ref lead to more than {MAX_VISITS} parts; make it simpler"
            ));
        }
        let own = ["pattern", "format"]
            .iter()
            .filter(|key| schema.contains_key(**key))
            .count();
        let mut joined = Joined {
            texts: own,
            multiple: multiple_of(schema)?,
            ..Joined::NONE
        };
        // All of these hold at once; of the others one does.
        for part in branches(schema, "allOf") {
            joined = joined.and(self.joined(part, depth + 1)?);
        }
        for key in ["anyOf", "oneOf"] {
            let mut parts = branches(schema, key);
            let Some(first) = parts.next() else {
                continue;
            };
            let mut one = self.joined(first, depth + 1)?;
            let mut count = 1;
            for part in parts {
                one = one.or(self.joined(part, depth + 1)?);
                count += 1;
            }
            one.lists += usize::from(count > 1);
            joined = joined.and(one);
        }
        let target = schema.get("$ref").and_then(Value::as_str);
        let target = target.and_then(|target| target.strip_prefix('#'));
        if let Some(Value::Object(target)) = target.and_then(|path| self.root.pointer(path)) {
            joined = joined.and(self.joined(target, depth + 1)?);
        }
        Ok(joined)
    }
}

fn branches<'a>(
    schema: &'a Map<String, Value>,
    key: &str,
) -> impl Iterator<Item = &'a Map<String, Value>> + use<'a> {
    let list = schema.get(key).and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_object)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn patterns(n: usize) -> Value {
        let one = |i: usize| json!({"type": "string", "pattern": format!("(.*a.{{{i}}}){{2}}")});
        (0..n).map(one).collect()
    }

    #[test]
    fn schema_with_too_many_joined_patterns_is_rejected() {
        for fine in [
            json!({"multipleOf": 0.01, "allOf": [{"multipleOf": 5}, {"multipleOf": 0.05}]}),
            json!({"multipleOf": 3600}),
            json!({"properties": {"multipleOf": {"type": "string"}}}),
            json!({"oneOf": vec![json!({"anyOf": [{"type": "string"}, {"type": "null"}]}); 100]}),
            json!({"allOf": patterns(4)}),
            json!({"anyOf": patterns(50)}),
            json!({"type": "object", "properties": {
                "a": {"type": "string", "pattern": "a"}, "b": {"type": "string", "format": "date"},
                "c": {"anyOf": [{"$ref": "#/$defs/x"}, {"type": "null"}]},
            }, "$defs": {"x": {"type": "string", "pattern": "x"}}}),
            // A list of lists of lists: each step goes through another value.
            json!({"$ref": "#/$defs/x", "$defs": {"x": {"type": "array", "items": {"$ref": "#/$defs/x"}}}}),
        ] {
            check(&fine).unwrap();
        }
        for (wrong, expected) in [
            (json!({"allOf": patterns(5)}), "must match 5 patterns"),
            (
                json!({"items": {"allOf": patterns(40)}}),
                "must match 40 patterns",
            ),
            (
                json!({"pattern": "a", "allOf": patterns(4)}),
                "must match 5 patterns",
            ),
            (
                json!({"pattern": "a", "anyOf": [{"pattern": "b", "oneOf": [{"allOf": patterns(3)}]}]}),
                "must match 5 patterns",
            ),
            (
                json!({"$ref": "#/$defs/a", "pattern": "x", "$defs": {
                    "a": {"$ref": "#/$defs/b", "pattern": "y"}, "b": {"allOf": patterns(3)},
                }}),
                "must match 5 patterns",
            ),
            (json!({"$ref": "#"}), "nested more than 64 deep"),
            (json!({"multipleOf": 1_000_003}), "multipleOf 1000003"),
            (json!({"multipleOf": 0}), "numbers above 0"),
            (
                json!({"multipleOf": 1e-9}),
                "at most 6 digits after the point",
            ),
            (
                json!({"multipleOf": 7919, "allOf": [{"multipleOf": 7907}]}),
                "has the digits 62615533",
            ),
            (
                json!({"$ref": "#/$defs/a", "multipleOf": 0.01, "$defs": {"a": {"multipleOf": 20_000}}}),
                "has the digits 2000000",
            ),
            (
                json!({"allOf": vec![json!({"anyOf": vec![json!({}); 5]}); 5]}),
                "have 3125 combinations",
            ),
            (
                json!({"properties": (0..1001).map(|i| (format!("p{i}"), json!({}))).collect::<Map<_, _>>()}),
                "more than 1000 properties",
            ),
            (
                json!({"patternProperties": (0..40).map(|i| (format!("p{i}"), json!({}))).collect::<Map<_, _>>()}),
                "patternProperties has 40 patterns",
            ),
        ] {
            let message = check(&wrong).unwrap_err();
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn schema_that_doubles_at_each_step_is_not_walked_to_its_end() {
        let doubled = |steps: usize| {
            let mut defs = json!({"d0": {}});
            for i in 1..=steps {
                let before = json!({"$ref": format!("#/$defs/d{}", i - 1)});
                defs[format!("d{i}")] = json!({"allOf": [before, before]});
            }
            json!({"$ref": format!("#/$defs/d{steps}"), "$defs": defs})
        };
        check(&doubled(12)).unwrap();
        for steps in [18, 30] {
            let message = check(&doubled(steps)).unwrap_err();
            assert!(message.contains("more than 100000 parts"), "{message}");
        }
    }
}
