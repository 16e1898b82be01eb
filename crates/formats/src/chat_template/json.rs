//! The `tojson` filter as transformers defines it: Python's `json.dumps(value, ensure_ascii=False)`, with no escapes for
//! HTML.

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

const MAX_DEPTH: usize = 100;
const MAX_INDENT: usize = 16;

pub(super) fn to_json(state: &State, value: Value, arguments: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = arguments.get("indent")?;
    // Accepted and ignored: text is never escaped to ASCII.
    let _: Option<bool> = arguments.get("ensure_ascii")?;
    arguments.assert_all_used()?;
    let mut text = String::new();
    write(
        state,
        &value,
        indent.map(|indent| indent.min(MAX_INDENT)),
        0,
        &mut text,
    )?;
    Ok(Value::from(text))
}

fn write(
    state: &State,
    value: &Value,
    indent: Option<usize>,
    depth: usize,
    out: &mut String,
) -> Result<(), Error> {
    let error = |detail: &'static str| Error::new(ErrorKind::BadSerialization, detail);
    if depth > MAX_DEPTH {
        return Err(error("tojson: nested too deep"));
    }
    let start = out.len();
    let line = |depth: usize, out: &mut String| {
        if let Some(indent) = indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    };
    match value.kind() {
        ValueKind::Undefined | ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => out.push_str(&value.to_string()),
        ValueKind::String => out.push_str(&quoted(value.as_str().unwrap_or_default())),
        kind @ (ValueKind::Seq | ValueKind::Iterable | ValueKind::Map) => {
            let map = kind == ValueKind::Map;
            out.push(if map { '{' } else { '[' });
            let mut empty = true;
            for item in value.try_iter()? {
                if !empty {
                    out.push_str(if indent.is_some() { "," } else { ", " });
                }
                empty = false;
                line(depth + 1, out);
                if map {
                    out.push_str(&quoted(&item.to_string()));
                    out.push_str(": ");
                    write(state, &value.get_item(&item)?, indent, depth + 1, out)?;
                } else {
                    write(state, &item, indent, depth + 1, out)?;
                }
                // Separators cost fuel too, so that no list is free.
                state.consume_fuel(1)?;
            }
            if !empty {
                line(depth, out);
            }
            out.push(if map { '}' } else { ']' });
        }
        _ => return Err(error("tojson: the value is not data")),
    }
    state.consume_fuel((out.len() - start) as u64 / 64)
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
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
