//! Methods of Python's texts and lists that templates call and `minijinja_contrib` does not have.

use minijinja::value::{Kwargs, Tuple, ValueKind, from_args};
use minijinja::{Error, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback as pycompat;

use super::python::invalid;

/// Calls a method that the template engine does not know.
pub(super) fn call(
    state: &mut State,
    value: &Value,
    method: &str,
    arguments: &[Value],
) -> Result<Value, Error> {
    let own = match (value.kind(), value.as_str()) {
        (_, Some(text)) => of_text(state, text, method, arguments)?,
        (ValueKind::Seq, _) if method == "index" => Some(index_of(state, value, arguments)?),
        _ => None,
    };
    match own {
        Some(result) => Ok(result),
        None => pycompat(state, value, method, arguments),
    }
}

fn index_of(state: &State, list: &Value, arguments: &[Value]) -> Result<Value, Error> {
    let (wanted,): (&Value,) = from_args(arguments)?;
    let place = list.try_iter()?.position(|item| item == *wanted);
    let steps = place.or_else(|| list.len()).unwrap_or(0);
    state.consume_fuel(steps as u64 / 16)?;
    place
        .map(Value::from)
        .ok_or_else(|| invalid(format!("{wanted} is not in list")))
}

/// The result of a method of a text; none if it is another module's.
fn of_text(
    state: &mut State,
    text: &str,
    method: &str,
    arguments: &[Value],
) -> Result<Option<Value>, Error> {
    Ok(Some(match method {
        "removeprefix" | "removesuffix" => {
            let (part,): (&str,) = from_args(arguments)?;
            let rest = match method {
                "removeprefix" => text.strip_prefix(part),
                _ => text.strip_suffix(part),
            };
            Value::from(rest.unwrap_or(text))
        }
        "split" | "rsplit" => split(state, text, method == "rsplit", arguments)?,
        "partition" | "rpartition" => partition(text, method == "rpartition", arguments)?,
        "find" | "rfind" | "index" | "rindex" => find(text, method, arguments)?,
        "startswith" | "endswith" if arguments.len() > 1 => {
            let (part, start, end): (Value, Option<i64>, Option<i64>) = from_args(arguments)?;
            let (within, _) = slice(text, start, end);
            pycompat(state, &Value::from(within), method, &[part])?
        }
        "ljust" | "rjust" | "center" | "zfill" => pad(state, text, method, arguments)?,
        "swapcase" => {
            let () = from_args(arguments)?;
            let swap = |c: char| -> String {
                match c.is_uppercase() {
                    true => c.to_lowercase().collect(),
                    false => c.to_uppercase().collect(),
                }
            };
            Value::from(text.chars().map(swap).collect::<String>())
        }
        "casefold" => {
            let () = from_args(arguments)?;
            Value::from(text.to_lowercase().replace('ß', "ss"))
        }
        "expandtabs" => expand_tabs(state, text, arguments)?,
        "isdecimal" => {
            let () = from_args(arguments)?;
            Value::from(!text.is_empty() && text.chars().all(|c| c.is_ascii_digit()))
        }
        "isidentifier" => {
            let () = from_args(arguments)?;
            let starts = text.starts_with(|c: char| c.is_alphabetic() || c == '_');
            Value::from(starts && text.chars().all(|c| c.is_alphanumeric() || c == '_'))
        }
        "isprintable" => {
            let () = from_args(arguments)?;
            Value::from(
                !text
                    .chars()
                    .any(|c| c.is_control() || (c.is_whitespace() && c != ' ')),
            )
        }
        "istitle" => {
            let () = from_args(arguments)?;
            Value::from(is_title(text))
        }
        _ => return Ok(None),
    }))
}

/// `split` and `rsplit`. Without a separator, runs of spaces separate, also those at the ends.
fn split(state: &State, text: &str, from_right: bool, arguments: &[Value]) -> Result<Value, Error> {
    let (separator, most, named): (Option<Value>, Option<i64>, Kwargs) = from_args(arguments)?;
    let separator = match separator {
        None => named.get::<Option<Value>>("sep")?,
        given => given,
    };
    let most = match most {
        None => named.get::<Option<i64>>("maxsplit")?,
        given => given,
    };
    named.assert_all_used()?;
    let most = most.and_then(|most| usize::try_from(most).ok());
    let limit = most.map_or(usize::MAX, |most| most.saturating_add(1));
    let separator = separator.filter(|separator| !separator.is_none());
    let mut parts: Vec<&str> = match &separator {
        Some(separator) => {
            let separator = separator.as_str().filter(|text| !text.is_empty());
            let separator = separator.ok_or_else(|| invalid("empty separator"))?;
            match from_right {
                true => text.rsplitn(limit, separator).collect(),
                false => text.splitn(limit, separator).collect(),
            }
        }
        None => words(text, limit, from_right),
    };
    if from_right {
        parts.reverse();
    }
    state.consume_fuel(parts.len() as u64)?;
    Ok(parts.into_iter().map(Value::from).collect())
}

/// Up to `limit` words; the last one is the rest. From the right, the last word comes first.
fn words(text: &str, limit: usize, from_right: bool) -> Vec<&str> {
    let trim = |text: &'_ str| -> usize {
        match from_right {
            true => text.trim_end().len(),
            false => text.len() - text.trim_start().len(),
        }
    };
    let (mut rest, mut parts) = (text, Vec::new());
    loop {
        rest = if from_right {
            &rest[..trim(rest)]
        } else {
            &rest[trim(rest)..]
        };
        if rest.is_empty() {
            return parts;
        }
        if parts.len() + 1 >= limit {
            parts.push(rest);
            return parts;
        }
        let found = match from_right {
            true => rest.char_indices().rev().find(|(_, c)| c.is_whitespace()),
            false => rest.char_indices().find(|(_, c)| c.is_whitespace()),
        };
        let Some((at, space)) = found else {
            parts.push(rest);
            return parts;
        };
        let after = at + space.len_utf8();
        let (word, others) = match from_right {
            true => (&rest[after..], &rest[..at]),
            false => (&rest[..at], &rest[after..]),
        };
        parts.push(word);
        rest = others;
    }
}

fn partition(text: &str, from_right: bool, arguments: &[Value]) -> Result<Value, Error> {
    let (separator,): (&str,) = from_args(arguments)?;
    if separator.is_empty() {
        return Err(invalid("empty separator"));
    }
    let found = match from_right {
        true => text.rsplit_once(separator),
        false => text.split_once(separator),
    };
    let parts = match found {
        Some((before, after)) => [before, separator, after],
        None if from_right => ["", "", text],
        None => [text, "", ""],
    };
    Ok(Value::from(Tuple::from(parts.map(Value::from).to_vec())))
}

/// `find` and `index` with their bounds, all in characters.
fn find(text: &str, method: &str, arguments: &[Value]) -> Result<Value, Error> {
    let (wanted, start, end): (&str, Option<i64>, Option<i64>) = from_args(arguments)?;
    let (part, skipped) = slice(text, start, end);
    let found = match method.starts_with('r') {
        true => part.rfind(wanted),
        false => part.find(wanted),
    };
    match found {
        Some(at) => Ok(Value::from(skipped + part[..at].chars().count())),
        None if method.ends_with("index") => Err(invalid("substring not found")),
        None => Ok(Value::from(-1)),
    }
}

/// `text[start:end]`, and how many characters are before it.
fn slice(text: &str, start: Option<i64>, end: Option<i64>) -> (&str, usize) {
    let count = text.chars().count();
    let place = |place: i64| match usize::try_from(place) {
        Ok(place) => place.min(count),
        Err(_) => count.saturating_sub(usize::try_from(place.unsigned_abs()).unwrap_or(usize::MAX)),
    };
    let (start, end) = (start.map_or(0, place), end.map_or(count, place));
    let byte = |place: usize| {
        text.char_indices()
            .nth(place)
            .map_or(text.len(), |(at, _)| at)
    };
    (&text[byte(start)..byte(end.max(start))], start)
}

fn pad(state: &State, text: &str, method: &str, arguments: &[Value]) -> Result<Value, Error> {
    let (width, fill): (usize, Option<char>) = from_args(arguments)?;
    let missing = width.saturating_sub(text.chars().count());
    // The result can be much longer than the text.
    state.consume_fuel(missing as u64 / 16)?;
    let filling = |count: usize, fill: char| std::iter::repeat_n(fill, count).collect::<String>();
    let fill = fill.unwrap_or(' ');
    Ok(Value::from(match method {
        "ljust" => format!("{text}{}", filling(missing, fill)),
        "rjust" => format!("{}{text}", filling(missing, fill)),
        "zfill" => {
            let sign = text.len() - text.trim_start_matches(['-', '+']).len();
            let (sign, digits) = text.split_at(sign.min(1));
            format!("{sign}{}{digits}", filling(missing, '0'))
        }
        _ => {
            let left = missing / 2 + (missing & width & 1);
            format!(
                "{}{text}{}",
                filling(left, fill),
                filling(missing - left, fill)
            )
        }
    }))
}

fn expand_tabs(state: &State, text: &str, arguments: &[Value]) -> Result<Value, Error> {
    let (size,): (Option<usize>,) = from_args(arguments)?;
    let size = size.unwrap_or(8);
    let tabs = text.matches('\t').count();
    state.consume_fuel((tabs as u64).saturating_mul(size as u64) / 16)?;
    let (mut expanded, mut column) = (String::new(), 0);
    for c in text.chars() {
        match c {
            '\t' => {
                let spaces = if size == 0 { 0 } else { size - column % size };
                expanded.extend(std::iter::repeat_n(' ', spaces));
                column += spaces;
            }
            c => {
                expanded.push(c);
                column = if matches!(c, '\n' | '\r') {
                    0
                } else {
                    column + 1
                };
            }
        }
    }
    Ok(Value::from(expanded))
}

/// Whether every word begins with a capital letter and has no other.
fn is_title(text: &str) -> bool {
    let (mut any, mut in_word) = (false, false);
    for c in text.chars() {
        if c.is_uppercase() && in_word || c.is_lowercase() && !in_word {
            return false;
        }
        in_word = c.is_uppercase() || c.is_lowercase();
        any |= in_word;
    }
    any
}
