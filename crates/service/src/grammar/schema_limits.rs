//! Looks at a JSON schema before a grammar is made of it. Patterns that one text must match all at once are what makes a small
//! schema slow to compile, exponentially so: they are counted, and too many refused.

use serde_json::{Map, Value};

/// The most patterns and formats that one text may have to match at once.
pub const MAX_JOINED: usize = 4;
/// The most places of a schema that are looked at, `$ref`s followed.
const MAX_VISITS: usize = 100_000;
/// The deepest nesting of `$ref`s and combinations at one place.
const MAX_DEPTH: usize = 64;

/// Refuses a schema that joins more than [`MAX_JOINED`] patterns somewhere, with a message for people.
pub(super) fn check(schema: &Value) -> Result<(), String> {
    let mut walk = SchemaWalk {
        root: schema,
        visits: 0,
    };
    walk.places(schema)
}

struct SchemaWalk<'a> {
    root: &'a Value,
    visits: usize,
}

impl<'a> SchemaWalk<'a> {
    /// Looks at every object in the schema as if it were a schema itself.
    fn places(&mut self, value: &'a Value) -> Result<(), String> {
        match value {
            Value::Object(object) => {
                let joined = self.joined(object, 0)?;
                if joined > MAX_JOINED {
                    return Err(format!(
                        "a text in it must match {joined} patterns and formats at once; at most {MAX_JOINED} can be joined"
                    ));
                }
                object.values().try_for_each(|value| self.places(value))
            }
            Value::Array(list) => list.iter().try_for_each(|value| self.places(value)),
            _ => Ok(()),
        }
    }

    /// How many patterns and formats a text must match at once, at most.
    fn joined(&mut self, schema: &'a Map<String, Value>, depth: usize) -> Result<usize, String> {
        self.visits += 1;
        if self.visits > MAX_VISITS || depth > MAX_DEPTH {
            return Err("its allOf, anyOf, oneOf and $ref are nested too deep".to_owned());
        }
        let own = ["pattern", "format"]
            .iter()
            .filter(|key| schema.contains_key(**key))
            .count();
        let mut joined = own;
        // All of these hold at once; of the others one does.
        for part in branches(schema, "allOf") {
            joined = joined.saturating_add(self.joined(part, depth + 1)?);
        }
        for key in ["anyOf", "oneOf"] {
            let mut most = 0;
            for part in branches(schema, key) {
                most = most.max(self.joined(part, depth + 1)?);
            }
            joined = joined.saturating_add(most);
        }
        let target = schema.get("$ref").and_then(Value::as_str);
        let target = target.and_then(|target| target.strip_prefix('#'));
        if let Some(Value::Object(target)) = target.and_then(|path| self.root.pointer(path)) {
            joined = joined.saturating_add(self.joined(target, depth + 1)?);
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
            (json!({"$ref": "#"}), "nested too deep"),
        ] {
            let message = check(&wrong).unwrap_err();
            assert!(message.contains(expected), "{message}");
        }
        let mut doubled = json!({"d0": {"pattern": "a"}});
        for i in 1..40 {
            let before = json!({"$ref": format!("#/$defs/d{}", i - 1)});
            doubled[format!("d{i}")] = json!({"allOf": [before, before]});
        }
        let doubled = json!({"$ref": "#/$defs/d39", "$defs": doubled});
        assert!(check(&doubled).is_err());
    }
}
