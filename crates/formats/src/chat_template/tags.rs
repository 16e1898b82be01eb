//! Measures the tags of a template. The template engine's work on one expression grows faster than the square of its length,
//! so that compiling one very long expression would take minutes.

/// The length in bytes of the longest `{{ }}` or `{% %}`, up to the end of the text if it is not closed.
pub(super) fn longest(source: &str) -> usize {
    let bytes = source.as_bytes();
    let (mut at, mut longest) = (0, 0);
    while at < bytes.len() {
        let end = match &bytes[at..] {
            [b'{', b'#', rest @ ..] => {
                let close = rest.windows(2).position(|pair| pair == b"#}");
                close.map_or(bytes.len(), |close| at + close + 4)
            }
            [b'{', b'{' | b'%', ..] => {
                let end = tag_end(bytes, at);
                longest = longest.max(end - at);
                end
            }
            _ => at + 1,
        };
        at = end;
    }
    longest
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
    use super::longest;

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
}
