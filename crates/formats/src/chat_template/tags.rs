//! Finds the tags of a template, and the length of the longest: the template engine's work on one expression grows faster than the
//! square of its length, so that compiling one very long expression would take minutes.

use std::ops::Range;

/// A `{{ }}` or `{% %}` that the template engine parses: not a comment, and not inside `{% raw %}`.
pub(super) struct Tag {
    /// All its bytes.
    whole: Range<usize>,
    /// The bytes between the opening and the closing sign, without the dashes or plus signs next to them.
    pub inside: Range<usize>,
    /// Whether it is a `{% %}`.
    pub is_block: bool,
}

/// The tags of a template, in order.
pub(super) fn tags(source: &str) -> Vec<Tag> {
    let bytes = source.as_bytes();
    let (mut at, mut tags) = (0, Vec::new());
    while at < bytes.len() {
        let is_block = match &bytes[at..] {
            [b'{', b'#', rest @ ..] => {
                let close = rest.windows(2).position(|pair| pair == b"#}");
                at = close.map_or(bytes.len(), |close| at + close + 4);
                continue;
            }
            [b'{', b'%', ..] => true,
            [b'{', b'{', ..] => false,
            _ => {
                at += 1;
                continue;
            }
        };
        let end = tag_end(bytes, at);
        let tag = Tag {
            whole: at..end,
            inside: inside(bytes, at, end),
            is_block,
        };
        at = end;
        if is_block && source[tag.inside.clone()].trim() == "raw" {
            at = raw_end(bytes, end);
        }
        tags.push(tag);
    }
    tags
}

/// The length in bytes of the longest `{{ }}` or `{% %}`, up to the end of the text if it is not closed.
pub(super) fn longest(source: &str) -> usize {
    let lengths = tags(source).into_iter().map(|tag| tag.whole.len());
    lengths.max().unwrap_or(0)
}

fn inside(bytes: &[u8], start: usize, end: usize) -> Range<usize> {
    let is_dash = |at: usize| matches!(bytes.get(at), Some(b'-' | b'+'));
    let closing = [b"}}", b"%}"];
    let is_closed = end - start >= 4 && closing.iter().any(|sign| bytes[..end].ends_with(*sign));
    let first = start + 2 + usize::from(is_dash(start + 2));
    let last = if is_closed { end - 2 } else { end };
    let last = last - usize::from(last > first && is_dash(last - 1));
    first..last.max(first)
}

/// The start of the `{% endraw %}` that comes next.
fn raw_end(bytes: &[u8], from: usize) -> usize {
    let begins = |at: &usize| {
        let rest = bytes[*at..].strip_prefix(b"{%");
        let rest = rest.map(|rest| rest.strip_prefix(b"-").unwrap_or(rest));
        rest.is_some_and(|rest| rest.trim_ascii_start().starts_with(b"endraw"))
    };
    (from..bytes.len()).find(begins).unwrap_or(bytes.len())
}

/// The end of the tag that starts at `start`: the first closing sign outside strings and braces.
fn tag_end(bytes: &[u8], start: usize) -> usize {
    let mut quote = None;
    let mut depth = 0usize;
    let mut at = start + 2;
    while at < bytes.len() {
        let byte = bytes[at];
        match quote {
            Some(_) if byte == b'\\' => at += 1,
            Some(open) if byte == open => quote = None,
            Some(_) => {}
            None => match byte {
                b'"' | b'\'' => quote = Some(byte),
                b'{' => depth += 1,
                b'}' | b'%' if depth == 0 && bytes.get(at + 1) == Some(&b'}') => return at + 2,
                b'}' => depth = depth.saturating_sub(1),
                _ => {}
            },
        }
        at += 1;
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::{longest, tags};

    #[test]
    fn tags_end_outside_strings_and_braces() {
        for (source, expected) in [
            ("", 0),
            ("plain } text %}", 0),
            ("a {{ b }} c {% if d %}", 10),
            ("{# {{ commented out }} #}{{a}}", 5),
            ("{{ '}}' }}", 10),
            (r#"{{ "\"}}" }}"#, 12),
            ("{{ {'a': {'b': 1}} }}", 21),
            ("{% set a = '{%' %}", 18),
            ("{{ never closed", 15),
            ("{# never closed {{ a }}", 0),
            ("{{ 'é' }}", 10),
        ] {
            assert_eq!(longest(source), expected, "{source}");
        }
    }

    #[test]
    fn inside_of_a_tag_has_no_dashes() {
        let source =
            "{{- a -}}{%+ b-%}{{-}}{{}}{%- raw -%}{{ c }}{%- endraw %}{# {{ d }} #}{{ {} }}{{ e";
        let inside = tags(source).into_iter().map(|tag| &source[tag.inside]);
        let expected = [" a ", " b", "", "", " raw ", " endraw ", " {} ", " e"];
        assert_eq!(inside.collect::<Vec<_>>(), expected);
    }
}
