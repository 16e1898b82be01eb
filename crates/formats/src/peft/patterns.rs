//! PEFT's patterns: which linears a configuration targets, and which rank and alpha each one gets.
//!
//! The rules are PEFT's (`check_target_module_exists`, `get_pattern_key`), restated:
//! - a list entry matches a path that equals it or ends in `.` and it; a string is a regular expression for the whole path;
//! - `rank_pattern` and `alpha_pattern` match where `(.*\.)?(key)` is the whole path, the first key in the file's order;
//! - `layers_to_transform` narrows a list to the layers whose number follows `layers_pattern` (any name by default).
//!
//! Patterns are untrusted: the regex engine is linear in time, and its programs are limited in size.

use regex::{Regex, RegexBuilder};

/// Largest compiled program, in bytes.
const MAX_PROGRAM: usize = 1 << 20;

/// Most patterns of a field that are regular expressions.
pub(super) const MAX_EXPRESSIONS: usize = 128;

/// Which modules an adapter targets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetModules {
    /// Names that a module's path equals or ends in; sorted.
    List(Vec<String>),
    /// A regular expression for a module's whole path.
    Expression(String),
    /// `all-linear`: all seven.
    AllLinear,
}

/// Compiles a regular expression with the size limit; the error names the unsupported syntax.
pub(super) fn compile(pattern: &str) -> Result<Regex, String> {
    RegexBuilder::new(pattern)
        .size_limit(MAX_PROGRAM)
        .build()
        .map_err(|error| {
            let text = error.to_string();
            let last = text
                .lines()
                .last()
                .unwrap_or("not a regular expression")
                .trim();
            format!("{pattern:?}: {last}")
        })
}

/// A key of `rank_pattern` or `alpha_pattern`.
pub(super) enum PathPattern {
    /// Only letters, digits, `_` and `.`: matched in place, where `.` matches any character as in an expression.
    Plain(String),
    /// Anything else.
    Expression(Regex),
}

impl PathPattern {
    pub(super) fn new(key: &str) -> Result<PathPattern, String> {
        if key
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'.')
        {
            return Ok(PathPattern::Plain(key.to_owned()));
        }
        compile(key)?;
        compile(&format!(r"^(?:.*\.)?(?:{key})$")).map(PathPattern::Expression)
    }

    pub(super) fn is_expression(&self) -> bool {
        matches!(self, PathPattern::Expression(_))
    }

    pub(super) fn matches(&self, path: &str) -> bool {
        match self {
            PathPattern::Expression(expression) => expression.is_match(path),
            PathPattern::Plain(key) => {
                let (path, key) = (path.as_bytes(), key.as_bytes());
                let Some(start) = path.len().checked_sub(key.len()) else {
                    return false;
                };
                let same = path[start..]
                    .iter()
                    .zip(key)
                    .all(|(have, want)| *want == b'.' || have == want);
                same && (start == 0 || path[start - 1] == b'.')
            }
        }
    }
}

/// The layers that a list of modules is restricted to.
pub(super) struct Layers {
    pub(super) numbers: Vec<usize>,
    expressions: Vec<Regex>,
}

impl Layers {
    pub(super) fn new(numbers: &[usize], patterns: &[String]) -> Result<Layers, String> {
        let expressions = if patterns.is_empty() {
            vec![compile(r"^.*\.[^.]*\.(\d+)\.")?]
        } else {
            patterns
                .iter()
                .map(|pattern| {
                    compile(pattern)?;
                    compile(&format!(r"^(?:.*\.{pattern}\.(\d+)\.)"))
                })
                .collect::<Result<_, _>>()?
        };
        Ok(Layers {
            numbers: numbers.to_vec(),
            expressions,
        })
    }

    pub(super) fn matches(&self, path: &str) -> bool {
        let number = self
            .expressions
            .iter()
            .find_map(|expression| expression.captures(path))
            .and_then(|found| {
                let digits = found.get(1)?.as_str();
                digits.parse::<usize>().ok()
            });
        number.is_some_and(|number| self.numbers.contains(&number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_keys_match_like_the_expression() {
        let paths = [
            "model.layers.0.self_attn.q_proj",
            "model.layers.10.self_attn.q_proj",
            "model.layers.0.mlp.up_proj",
            "q_proj",
            "xq_proj",
        ];
        for key in [
            "q_proj",
            "self_attn.q_proj",
            "layers.0.self_attn.q_proj",
            "model.layers.0.mlp.up_proj",
            "proj",
            "",
        ] {
            let expression = Regex::new(&format!(r"^(?:.*\.)?(?:{key})$")).unwrap();
            let plain = PathPattern::new(key).unwrap();
            assert!(!plain.is_expression());
            for path in paths {
                assert_eq!(
                    plain.matches(path),
                    expression.is_match(path),
                    "{key} on {path}"
                );
            }
        }
    }

    #[test]
    fn expressions_of_the_peft_documentation_match() {
        let pattern = PathPattern::new(r"model\.layers\.\d+\.(mlp)\.(up|down)_proj").unwrap();
        assert!(pattern.matches("model.layers.12.mlp.up_proj"));
        assert!(!pattern.matches("model.layers.12.mlp.gate_proj"));
        let pattern = PathPattern::new(r"^model.layers.0.*q_proj").unwrap();
        assert!(pattern.matches("model.layers.0.self_attn.q_proj"));
    }

    #[test]
    fn unsupported_expressions_are_refused_with_a_reason() {
        assert!(
            PathPattern::new(r"(?!a)b")
                .err()
                .unwrap()
                .contains("look-around")
        );
        assert!(PathPattern::new("a)(b").is_err());
        assert!(PathPattern::new(r"(a{1000}){1000}").is_err());
    }

    #[test]
    fn layer_numbers_are_found_by_pattern_or_position() {
        let path = "model.layers.3.mlp.up_proj";
        assert!(Layers::new(&[3], &[]).unwrap().matches(path));
        assert!(!Layers::new(&[1, 2], &[]).unwrap().matches(path));
        assert!(
            Layers::new(&[3], &["layers".to_owned()])
                .unwrap()
                .matches(path)
        );
        assert!(!Layers::new(&[3], &["h".to_owned()]).unwrap().matches(path));
        assert!(
            Layers::new(&[3], &["h".to_owned(), "layers".to_owned()])
                .unwrap()
                .matches(path)
        );
    }
}
