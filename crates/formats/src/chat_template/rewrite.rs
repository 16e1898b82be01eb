//! Rewrites what Jinja2 knows and the template engine does not, before a template is parsed. Lines keep their numbers.
//!
//! ```text
//! {%- generation -%} ... {%- endgeneration -%}  ->  {%- with -%} ... {%- endwith -%}
//! {{ '<%s>' % x.y | upper ~ z }}                ->  {{ python_mod('<%s>' , x.y | upper )~ z }}
//! ```
//!
//! transformers renders the content of `generation` as it is, in a scope of its own; it only marks what the assistant wrote.

use super::tags::{Tag, tags};

/// The function that computes `%` for numbers and texts.
pub(super) const MOD: &str = "python_mod";

/// The template with these parts replaced.
pub(super) fn rewrite(source: &str) -> String {
    let mut edits = Vec::new();
    for tag in tags(source) {
        let inside = &source[tag.inside.clone()];
        let word = inside.trim();
        let replaced = match word {
            "generation" if tag.is_block => Some("with"),
            "endgeneration" if tag.is_block => Some("endwith"),
            _ => None,
        };
        match replaced {
            Some(new) => {
                let start = tag.inside.start + (inside.len() - inside.trim_start().len());
                edits.push(Edit {
                    at: start,
                    removed: word.len(),
                    new: new.to_owned(),
                });
            }
            None if inside.contains('%') => remainders(source, &tag, &mut edits),
            None => {}
        }
    }
    edits.sort_by_key(|edit| edit.at);
    let (mut text, mut from) = (String::with_capacity(source.len()), 0);
    for edit in edits {
        text.push_str(&source[from..edit.at]);
        text.push_str(&edit.new);
        from = edit.at + edit.removed;
    }
    text.push_str(&source[from..]);
    text
}

/// Replaces bytes by a text.
struct Edit {
    at: usize,
    removed: usize,
    new: String,
}

/// An operand of `*`, `/`, `//` and `%`, or a product of several, at one level of brackets.
#[derive(Default)]
struct Product {
    /// Where it starts; none before its first operand.
    start: Option<usize>,
    /// The end of its last token.
    end: usize,
    /// Whether a text is in it, so that `%` may format.
    has_text: bool,
    /// Whether its last token ends an operand.
    is_operand: bool,
    /// Whether it ends the right side of a `%` that is being replaced.
    is_right_side: bool,
}

impl Product {
    /// Ends the right side of a `%`.
    fn close(&mut self, edits: &mut Vec<Edit>) {
        if std::mem::take(&mut self.is_right_side) {
            edits.push(Edit {
                at: self.end,
                removed: 0,
                new: ")".to_owned(),
            });
        }
    }

    /// Begins the next product. A text in brackets stays one for what follows the brackets.
    fn begin(&mut self, is_inner: bool) {
        *self = Product {
            has_text: self.has_text && is_inner,
            ..Product::default()
        };
    }

    fn operand(&mut self, start: usize, end: usize) {
        self.start.get_or_insert(start);
        self.end = end;
        self.is_operand = true;
    }
}

/// Replaces `a % b` in the expressions of a tag. A number on the right and no text on the left is left to the template engine.
fn remainders(source: &str, tag: &Tag, edits: &mut Vec<Edit>) {
    let bytes = &source.as_bytes()[..tag.inside.end];
    let mut levels = vec![Product::default()];
    let mut at = tag.inside.start;
    // The first word of a block is its statement.
    let mut is_statement = tag.is_block;
    while at < bytes.len() {
        let end = token_end(bytes, at);
        let token = &source[at..end];
        let is_inner = levels.len() > 1;
        let Some(product) = levels.last_mut() else {
            return;
        };
        match bytes[at] {
            byte if byte.is_ascii_whitespace() => {}
            b'"' | b'\'' => {
                product.operand(at, end);
                product.has_text = true;
            }
            b'(' | b'[' | b'{' => {
                product.operand(at, end);
                levels.push(Product::default());
            }
            b')' | b']' | b'}' => {
                product.close(edits);
                let has_text = product.has_text;
                levels.pop();
                if let Some(outer) = levels.last_mut() {
                    outer.operand(at, end);
                    outer.has_text |= has_text;
                }
            }
            b'%' if product.is_operand => {
                product.close(edits);
                let right = bytes[end..].trim_ascii_start();
                let is_number = right.first().is_some_and(u8::is_ascii_digit);
                product.is_operand = false;
                if let Some(start) = product.start
                    && (product.has_text || !is_number)
                {
                    edits.push(Edit {
                        at: start,
                        removed: 0,
                        new: format!("{MOD}("),
                    });
                    edits.push(Edit {
                        at,
                        removed: 1,
                        new: ",".to_owned(),
                    });
                    product.is_right_side = true;
                }
                product.end = end;
            }
            b'*' | b'/' if token != "**" => {
                product.close(edits);
                product.end = end;
                product.is_operand = false;
            }
            // A power, an attribute, a filter, or the sign of an operand.
            b'*' | b'.' | b'|' => (product.end, product.is_operand) = (end, false),
            b'-' | b'+' if !product.is_operand => {
                product.start.get_or_insert(at);
                product.end = end;
            }
            byte if byte.is_ascii_alphanumeric() || byte == b'_' || !byte.is_ascii() => {
                // After `.` and `|` it is a name.
                let follows = bytes.get(product.end.wrapping_sub(1));
                let is_name = !product.is_operand && matches!(follows, Some(b'.' | b'|'));
                if is_statement || (!is_name && is_keyword(token)) {
                    product.close(edits);
                    product.begin(is_inner);
                } else {
                    product.operand(at, end);
                }
                is_statement = false;
            }
            _ => {
                product.close(edits);
                product.begin(is_inner);
            }
        }
        at = end;
    }
    if let Some(product) = levels.last_mut() {
        product.close(edits);
    }
}

/// A word that ends an operand.
fn is_keyword(word: &str) -> bool {
    matches!(
        word,
        "and" | "or" | "not" | "in" | "is" | "if" | "else" | "recursive"
    )
}

/// The end of the token at `at`: a text, a word or number, `**`, `//`, or one character.
fn token_end(bytes: &[u8], at: usize) -> usize {
    let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_' || !byte.is_ascii();
    match bytes[at] {
        quote @ (b'"' | b'\'') => {
            let mut end = at + 1;
            while end < bytes.len() && bytes[end] != quote {
                end += if bytes[end] == b'\\' { 2 } else { 1 };
            }
            (end + 1).min(bytes.len())
        }
        byte if is_word(&byte) => {
            let rest = &bytes[at..];
            at + rest
                .iter()
                .position(|byte| !is_word(byte))
                .unwrap_or(rest.len())
        }
        byte @ (b'*' | b'/') if bytes.get(at + 1) == Some(&byte) => at + 2,
        _ => at + 1,
    }
}

#[cfg(test)]
mod tests {
    use super::rewrite;

    #[test]
    fn remainders_of_texts_become_calls() {
        for (source, expected) in [
            ("{{ loop.index % 2 == 0 }}", "{{ loop.index % 2 == 0 }}"),
            ("100 % {# a % b #} {{ '%' }}", "100 % {# a % b #} {{ '%' }}"),
            ("{{ '%s' % x }}", "{{ python_mod('%s' , x) }}"),
            ("{{-'%s' % 2-}}", "{{-python_mod('%s' , 2)-}}"),
            (
                "{{ a + '%s' % x.y[0] | f(1) + b }}",
                "{{ a + python_mod('%s' , x.y[0] | f(1)) + b }}",
            ),
            (
                "{{ a % b % c * d }}",
                "{{ python_mod(python_mod(a , b) , c) * d }}",
            ),
            (
                "{{ f('%s' % (a, b % c)) }}",
                "{{ f(python_mod('%s' , (a, python_mod(b , c)))) }}",
            ),
            (
                "{% set x = '%s' % -y if z %}",
                "{% set x = python_mod('%s' , -y) if z %}",
            ),
            (
                "{% if a.in % b and c %}",
                "{% if python_mod(a.in , b) and c %}",
            ),
            (
                "{{ [a % b, 'x', 3 % 2] }}",
                "{{ [python_mod(a , b), 'x', python_mod(3 , 2)] }}",
            ),
        ] {
            assert_eq!(rewrite(source), expected);
        }
    }

    #[test]
    fn lines_keep_their_numbers() {
        let source = "{%-\n generation\n-%}{{ '%s'\n%\nx\n}}{% endgeneration %}\n";
        assert_eq!(rewrite(source).matches('\n').count(), 6);
    }
}
