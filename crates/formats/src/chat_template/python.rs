//! Values as Python writes and formats them: `str`, `repr`, and `%`.

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, State, Value};

/// Deepest nesting of a list that is written.
const MAX_DEPTH: usize = 100;

/// Python's `str(value)`; none if the template engine's text is the same.
pub(super) fn str(state: &State, value: &Value) -> Result<Option<String>, Error> {
    let text = match value.kind() {
        ValueKind::Bool | ValueKind::None | ValueKind::Seq | ValueKind::Map => repr(state, value)?,
        ValueKind::Number if !value.is_integer() => repr(state, value)?,
        _ => return Ok(None),
    };
    Ok(Some(text))
}

/// Python's `str(value)`.
fn text(state: &State, value: &Value) -> Result<String, Error> {
    Ok(str(state, value)?.unwrap_or_else(|| value.to_string()))
}

/// Python's `repr(value)`.
fn repr(state: &State, value: &Value) -> Result<String, Error> {
    let mut text = String::new();
    write_repr(state, value, 0, &mut text)?;
    Ok(text)
}

fn write_repr(state: &State, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(invalid("a list is nested too deep to be written"));
    }
    let start = out.len();
    match value.kind() {
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::None => out.push_str("None"),
        ValueKind::String => quote(value.as_str().unwrap_or_default(), out),
        ValueKind::Number if !value.is_integer() => {
            let number = f64::try_from(value.clone());
            out.push_str(&number.map_or_else(|_| value.to_string(), float));
        }
        ValueKind::Seq | ValueKind::Map => {
            let is_map = value.kind() == ValueKind::Map;
            let (open, close) = match (is_map, value.is_tuple()) {
                (true, _) => ('{', '}'),
                (false, true) => ('(', ')'),
                (false, false) => ('[', ']'),
            };
            out.push(open);
            let mut count = 0;
            for item in value.try_iter()? {
                if count > 0 {
                    out.push_str(", ");
                }
                count += 1;
                write_repr(state, &item, depth + 1, out)?;
                if is_map {
                    out.push_str(": ");
                    write_repr(state, &value.get_item(&item)?, depth + 1, out)?;
                }
                state.consume_fuel(1)?;
            }
            if count == 1 && open == '(' {
                out.push(',');
            }
            out.push(close);
        }
        _ => out.push_str(&value.to_string()),
    }
    state.consume_fuel((out.len() - start) as u64 / 64)
}

/// A text in quotes: single ones, unless it has these and no double ones.
fn quote(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => out.extend(['\\', c]),
            c if (c as u32) < 0x20 || (0x7f..0xa0).contains(&(c as u32)) => {
                out.push_str(&format!("\\x{:02x}", c as u32));
            }
            c => out.push(c),
        }
    }
    out.push(quote);
}

/// A number with a fraction, as `repr` writes it.
fn float(number: f64) -> String {
    if !number.is_finite() {
        return number.to_string().to_lowercase();
    }
    let size = number.abs();
    if size != 0.0 && !(1e-4..1e16).contains(&size) {
        let text = format!("{number:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = match exponent.strip_prefix('-') {
            Some(exponent) => ('-', exponent),
            None => ('+', exponent),
        };
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    format!("{number:?}")
}

/// Python's `%`: the remainder of numbers, or a text with its arguments filled in.
pub(super) fn modulo(state: &mut State, left: &Value, right: &Value) -> Result<Value, Error> {
    if let Some(format) = left.as_str() {
        return printf(state, format, right);
    }
    let unsupported = || {
        let (left, right) = (left.kind(), right.kind());
        invalid(format!("% does not take {left} and {right}"))
    };
    if left.is_integer() && right.is_integer() {
        let int = |value: &Value| i128::try_from(value.clone());
        let (a, b) = (int(left)?, int(right)?);
        let rest = a.checked_rem(b).ok_or_else(unsupported)?;
        // The result has the sign of the right side.
        let differs = rest != 0 && (rest < 0) != (b < 0);
        let rest = if differs { rest + b } else { rest };
        return Ok(i64::try_from(rest).map_or_else(|_| Value::from(rest), Value::from));
    }
    if left.kind() != ValueKind::Number || right.kind() != ValueKind::Number {
        return Err(unsupported());
    }
    let (a, b) = (f64::try_from(left.clone())?, f64::try_from(right.clone())?);
    if b == 0.0 {
        return Err(unsupported());
    }
    let rest = a % b;
    let differs = rest != 0.0 && (rest < 0.0) != (b < 0.0);
    Ok(Value::from(if differs { rest + b } else { rest }))
}

/// Python's `format % arguments`. The template engine's filter formats; here, texts of other values become Python's.
fn printf(state: &mut State, format: &str, arguments: &Value) -> Result<Value, Error> {
    let positional: Vec<Value> = match arguments.is_tuple() {
        true => arguments.try_iter()?.collect(),
        false => vec![arguments.clone()],
    };
    let mut positional = positional.into_iter();
    let mut values = Vec::new();
    let mut rewritten = String::new();
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        rewritten.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let name = rest.strip_prefix('(').and_then(|rest| rest.split_once(')'));
        let (name, spec) = name.map_or((None, rest), |(name, rest)| (Some(name), rest));
        let flags = spec.trim_start_matches([
            '-', '+', ' ', '#', '0', '.', '1', '2', '3', '4', '5', '6', '7', '8', '9',
        ]);
        let Some(conversion) = flags.chars().next() else {
            return Err(invalid("incomplete format"));
        };
        rest = &flags[conversion.len_utf8()..];
        let flags = &spec[..spec.len() - flags.len()];
        if conversion == '%' {
            rewritten.push_str("%%");
            continue;
        }
        let value = match name {
            Some(name) => Some(arguments.get_item(&Value::from(name))?),
            None => positional.next(),
        };
        let value = value.ok_or_else(|| invalid("not enough arguments for format string"))?;
        let (conversion, value) = match conversion {
            's' => ('s', Value::from(text(state, &value)?)),
            'r' | 'a' => ('s', Value::from(repr(state, &value)?)),
            'i' | 'u' => ('d', value),
            conversion => (conversion, value),
        };
        rewritten.push('%');
        rewritten.push_str(flags);
        rewritten.push(conversion);
        values.push(value);
    }
    if arguments.is_tuple() && positional.next().is_some() {
        return Err(invalid(
            "not all arguments converted during string formatting",
        ));
    }
    rewritten.push_str(rest);
    values.insert(0, Value::from(rewritten));
    state.apply_filter("format", &values)
}

pub(super) fn invalid(detail: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, detail)
}
