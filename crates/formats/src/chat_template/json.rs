//! The `tojson` filter as transformers defines it: Python's `json.dumps` with `ensure_ascii=False` as the default, and no escapes
//! for HTML.

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

use super::python::invalid;

const MAX_DEPTH: usize = 100;
const MAX_INDENT: usize = 16;

/// `tojson(ensure_ascii=false, indent=none, separators=none, sort_keys=false)`
pub(super) fn to_json(
    state: &State,
    value: Value,
    ensure_ascii: Option<Value>,
    indent: Option<Value>,
    arguments: Kwargs,
) -> Result<Value, Error> {
    let named = |given: Option<Value>, name: &str| match given {
        Some(given) => Ok(Some(given)),
        None => arguments.get::<Option<Value>>(name),
    };
    let ensure_ascii = named(ensure_ascii, "ensure_ascii")?;
    let indent = named(indent, "indent")?.filter(|indent| !indent.is_none());
    let separators: Option<Value> = arguments.get("separators")?;
    let sort_keys: Option<bool> = arguments.get("sort_keys")?;
    arguments.assert_all_used()?;
    let indent = indent.map(|indent| match indent.as_str() {
        Some(text) => text.chars().take(MAX_INDENT).collect(),
        None => {
            let spaces = usize::try_from(indent).unwrap_or(0);
            " ".repeat(spaces.min(MAX_INDENT))
        }
    });
    let usual = if indent.is_some() { "," } else { ", " };
    let (item, key) = match separators.filter(|separators| !separators.is_none()) {
        Some(separators) => pair(&separators)?,
        None => (usual.to_owned(), ": ".to_owned()),
    };
    let writer = Writer {
        state,
        ensure_ascii: ensure_ascii.is_some_and(|value| value.is_true()),
        indent,
        item,
        key,
        sort_keys: sort_keys == Some(true),
    };
    let mut text = String::new();
    writer.write(&value, 0, &mut text)?;
    Ok(Value::from(text))
}

fn pair(separators: &Value) -> Result<(String, String), Error> {
    let texts: Vec<Value> = separators.try_iter()?.collect();
    match texts.as_slice() {
        [item, key] if item.as_str().is_some() && key.as_str().is_some() => {
            Ok((item.to_string(), key.to_string()))
        }
        _ => Err(invalid("tojson: separators must be two texts")),
    }
}

struct Writer<'a, 's, 'e> {
    state: &'a State<'s, 'e>,
    ensure_ascii: bool,
    /// What a line begins with at each level; everything is on one line without it.
    indent: Option<String>,
    /// What separates items.
    item: String,
    /// What separates a key from its value.
    key: String,
    sort_keys: bool,
}

impl Writer<'_, '_, '_> {
    fn write(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        let error = |detail: &'static str| Error::new(ErrorKind::BadSerialization, detail);
        if depth > MAX_DEPTH {
            return Err(error("tojson: nested too deep"));
        }
        let start = out.len();
        match value.kind() {
            ValueKind::Undefined | ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&value.to_string()),
            ValueKind::String => out.push_str(&self.quoted(value.as_str().unwrap_or_default())),
            kind @ (ValueKind::Seq | ValueKind::Iterable | ValueKind::Map) => {
                self.write_items(value, kind == ValueKind::Map, depth, out)?;
            }
            _ => return Err(error("tojson: the value is not data")),
        }
        self.state.consume_fuel((out.len() - start) as u64 / 64)
    }

    fn write_items(
        &self,
        value: &Value,
        is_map: bool,
        depth: usize,
        out: &mut String,
    ) -> Result<(), Error> {
        out.push(if is_map { '{' } else { '[' });
        let mut items: Vec<Value> = Vec::new();
        for item in value.try_iter()? {
            // Separators cost fuel too, so that no list is free.
            self.state.consume_fuel(1)?;
            items.push(item);
        }
        if is_map && self.sort_keys {
            items.sort();
        }
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                out.push_str(&self.item);
                self.state.consume_fuel(self.item.len() as u64 / 64)?;
            }
            self.begin_line(depth + 1, out);
            if is_map {
                let key = match item.kind() {
                    ValueKind::None => "null".to_owned(),
                    _ => item.to_string(),
                };
                out.push_str(&self.quoted(&key));
                out.push_str(&self.key);
                self.state.consume_fuel(self.key.len() as u64 / 64)?;
                self.write(&value.get_item(item)?, depth + 1, out)?;
            } else {
                self.write(item, depth + 1, out)?;
            }
        }
        if !items.is_empty() {
            self.begin_line(depth, out);
        }
        out.push(if is_map { '}' } else { ']' });
        Ok(())
    }

    fn begin_line(&self, depth: usize, out: &mut String) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(indent.as_str(), depth));
        }
    }

    fn quoted(&self, text: &str) -> String {
        let quoted = serde_json::Value::from(text).to_string();
        if !self.ensure_ascii || quoted.is_ascii() {
            return quoted;
        }
        let mut escaped = String::new();
        for c in quoted.chars() {
            match c.is_ascii() {
                true => escaped.push(c),
                false => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        escaped.push_str(&format!("\\u{unit:04x}"));
                    }
                }
            }
        }
        escaped
    }
}

#[cfg(test)]
mod tests {
    use crate::chat_template::{ChatTemplate, Message};

    fn render(source: &str) -> String {
        let template = ChatTemplate::new(source, "", "").unwrap();
        template
            .render(&[Message::new("user", "é<b>\"\n'")], false)
            .unwrap()
    }

    #[test]
    fn output_equals_python_json_dumps() {
        assert_eq!(
            render("{{ messages | tojson }}"),
            r#"[{"role": "user", "content": "é<b>\"\n'"}]"#
        );
        let data = "{'a': [1, 2.5, true, none], 'c': {}, 'd': []}";
        assert_eq!(
            render(&format!("{{{{ {data} | tojson }}}}")),
            r#"{"a": [1, 2.5, true, null], "c": {}, "d": []}"#
        );
        assert_eq!(
            render("{{ {'a': [1], 'b': []} | tojson(indent=2) }}"),
            "{\n  \"a\": [\n    1\n  ],\n  \"b\": []\n}"
        );
    }
}
