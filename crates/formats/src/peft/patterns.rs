//! PEFT's patterns: which linears a configuration targets, and which rank and alpha each one gets.
//!
//! The rules are PEFT's (`check_target_module_exists`, `get_pattern_key`), restated:
//! - a list entry matches a path that equals it or ends in `.` and it; a string is a regular expression for the whole path;
//! - `rank_pattern` and `alpha_pattern` match where `(.*\.)?(key)` is the whole path, the first key in the file's order;
//! - `layers_to_transform` narrows a list to the layers whose number follows `layers_pattern` (any name by default).
//!
//! Patterns are untrusted. The engine of most is linear in time, and the programs of a field are limited in their total size. Paths are ASCII,
//! so classes such as `\w` mean ASCII, which keeps programs small. Expressions with look-around or backreferences need an engine that
//! backtracks: their number and length, the steps of one match, and the matches of one adapter are limited.

use std::cell::Cell;

use regex::bytes::{Regex, RegexBuilder};

use crate::bounded_regex::reason;

/// The largest total size of a field's compiled programs, in bytes.
const MAX_PROGRAM: usize = 512 << 10;

/// The deepest nesting of an expression.
const MAX_NESTING: u32 = 50;

/// Most patterns of a field that are regular expressions.
pub(super) const MAX_EXPRESSIONS: usize = 128;

/// The longest expression with look-around or backreferences, in bytes.
const MAX_BACKTRACKING_EXPRESSION: usize = 1000;

/// The largest program that such an expression hands to the linear engine, in bytes.
const MAX_BACKTRACKING_PROGRAM: usize = 128 << 10;

/// Most steps back in one match of such an expression.
const MAX_STEPS: usize = 2000;

/// Most matches of such expressions for one adapter.
const MAX_MATCHES: u32 = 65_536;

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

/// The matches that the backtracking expressions of one adapter may still take.
pub(super) struct MatchBudget(Cell<u32>);

impl Default for MatchBudget {
    fn default() -> Self {
        MatchBudget(Cell::new(MAX_MATCHES))
    }
}

/// A compiled regular expression.
#[derive(Debug)]
pub(super) enum Expression {
    /// Linear in time.
    Linear(Regex),
    /// With look-around or backreferences.
    Backtracking(Box<fancy_regex::Regex>),
}

impl Expression {
    /// Compiles `whole`, which contains the regular expression `pattern`, as one of `count` of its field. The limit of the field's programs is
    /// divided by that number. The error names `pattern` and the unsupported syntax.
    pub(super) fn new(pattern: &str, whole: &str, count: usize) -> Result<Expression, String> {
        match compile(pattern, whole, count) {
            Ok(regex) => Ok(Expression::Linear(regex)),
            Err(_) if needs_backtracking(pattern) => backtracking(pattern, whole),
            Err(problem) => Err(problem),
        }
    }

    /// Whether it matches `path`.
    ///
    /// # Errors
    /// A backtracking expression takes too long.
    pub(super) fn is_match(&self, path: &str, budget: &MatchBudget) -> Result<bool, String> {
        match self {
            Expression::Linear(regex) => Ok(regex.is_match(path.as_bytes())),
            Expression::Backtracking(regex) => {
                let left = budget.0.get().checked_sub(1).ok_or_else(|| {
                    format!(
                        "expressions with look-around are matched more than {MAX_MATCHES} times; use fewer of them"
                    )
                })?;
                budget.0.set(left);
                regex.is_match(path).map_err(|_| {
                    format!(
                        "{:?} needs more than {MAX_STEPS} steps on {path}; simplify it",
                        shown(regex.as_str())
                    )
                })
            }
        }
    }
}

/// Whether the linear engine refuses `pattern` for look-around or a backreference.
fn needs_backtracking(pattern: &str) -> bool {
    let linear = regex_syntax::ast::parse::Parser::new().parse(pattern);
    let Err(error) = linear else {
        return false;
    };
    use regex_syntax::ast::ErrorKind::{UnsupportedBackreference, UnsupportedLookAround};
    matches!(
        error.kind(),
        UnsupportedBackreference | UnsupportedLookAround
    )
}

fn backtracking(pattern: &str, whole: &str) -> Result<Expression, String> {
    if pattern.len() > MAX_BACKTRACKING_EXPRESSION {
        return Err(format!(
            "{:?}: {} bytes; an expression with look-around may have {MAX_BACKTRACKING_EXPRESSION}",
            shown(pattern),
            pattern.len()
        ));
    }
    let build = |text: &str| {
        fancy_regex::RegexBuilder::new(text)
            .backtrack_limit(MAX_STEPS)
            .delegate_size_limit(MAX_BACKTRACKING_PROGRAM)
            .delegate_dfa_size_limit(MAX_BACKTRACKING_PROGRAM)
            .build()
            .map_err(|error| format!("{:?}: {error}", shown(pattern)))
    };
    // By itself first, so that its brackets are closed within it.
    build(pattern)?;
    Ok(Expression::Backtracking(Box::new(build(whole)?)))
}

/// The beginning of a pattern, for messages.
fn shown(pattern: &str) -> String {
    pattern.chars().take(80).collect()
}

/// [`Expression::new`] for the linear engine alone.
fn compile(pattern: &str, whole: &str, count: usize) -> Result<Regex, String> {
    let build = |text: &str, limit: usize| {
        RegexBuilder::new(text)
            .unicode(false)
            .size_limit(limit)
            .dfa_size_limit(MAX_PROGRAM)
            .nest_limit(MAX_NESTING)
            .build()
    };
    let shown = shown(pattern);
    // By itself first, so that its brackets are closed within it. Only its syntax counts here.
    match build(pattern, 0) {
        Ok(_) | Err(regex::Error::CompiledTooBig(_)) => {}
        Err(error) => return Err(format!("{shown:?}: {}", reason(&error))),
    }
    let limit = MAX_PROGRAM / count.max(1);
    build(whole, limit).map_err(|error| match error {
        regex::Error::CompiledTooBig(_) => format!(
            "{shown:?}: compiles to more than {limit} bytes, its part of the field's {MAX_PROGRAM}; use fewer or shorter expressions"
        ),
        error => format!("{shown:?}: {}", reason(&error)),
    })
}

/// A key of `rank_pattern` or `alpha_pattern`.
pub(super) enum PathPattern {
    /// Only letters, digits, `_` and `.`: matched in place, where `.` matches any character as in an expression.
    Plain(String),
    /// Anything else.
    Expression(Expression),
}

impl PathPattern {
    /// A pattern from a map with `count` expressions.
    pub(super) fn new(key: &str, count: usize) -> Result<PathPattern, String> {
        if PathPattern::is_plain(key) {
            return Ok(PathPattern::Plain(key.to_owned()));
        }
        let whole = format!(r"^(?:.*\.)?(?:{key})$");
        Expression::new(key, &whole, count).map(PathPattern::Expression)
    }

    /// Whether `key` needs no compiling.
    pub(super) fn is_plain(key: &str) -> bool {
        key.bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'.')
    }

    /// # Errors
    /// As [`Expression::is_match`].
    pub(super) fn matches(&self, path: &str, budget: &MatchBudget) -> Result<bool, String> {
        match self {
            PathPattern::Expression(expression) => expression.is_match(path, budget),
            PathPattern::Plain(key) => {
                let (path, key) = (path.as_bytes(), key.as_bytes());
                let Some(start) = path.len().checked_sub(key.len()) else {
                    return Ok(false);
                };
                let same = path[start..]
                    .iter()
                    .zip(key)
                    .all(|(have, want)| *want == b'.' || have == want);
                Ok(same && (start == 0 || path[start - 1] == b'.'))
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
            let any = r"^.*\.[^.]*\.(\d+)\.";
            vec![compile(any, any, 1)?]
        } else {
            patterns
                .iter()
                .map(|pattern| {
                    let whole = format!(r"^(?:.*\.{pattern}\.(\d+)\.)");
                    compile(pattern, &whole, patterns.len())
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
            .find_map(|expression| expression.captures(path.as_bytes()))
            .and_then(|found| {
                let digits = std::str::from_utf8(found.get(1)?.as_bytes()).ok()?;
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
            let plain = PathPattern::new(key, 1).unwrap();
            assert!(matches!(plain, PathPattern::Plain(_)));
            for path in paths {
                assert_eq!(
                    plain.matches(path, &MatchBudget::default()),
                    Ok(expression.is_match(path.as_bytes())),
                    "{key} on {path}"
                );
            }
        }
    }

    #[test]
    fn expressions_of_the_peft_documentation_match() {
        let budget = MatchBudget::default();
        let pattern = PathPattern::new(r"model\.layers\.\d+\.(mlp)\.(up|down)_proj", 128).unwrap();
        assert!(
            pattern
                .matches("model.layers.12.mlp.up_proj", &budget)
                .unwrap()
        );
        assert!(
            !pattern
                .matches("model.layers.12.mlp.gate_proj", &budget)
                .unwrap()
        );
        let pattern = PathPattern::new(r"^model.layers.0.*q_proj", 1).unwrap();
        assert!(
            pattern
                .matches("model.layers.0.self_attn.q_proj", &budget)
                .unwrap()
        );
    }

    #[test]
    fn look_around_and_backreferences_match_as_in_python() {
        let budget = MatchBudget::default();
        let whole = |pattern: &str, path: &str| {
            let expression = Expression::new(pattern, &format!("^(?:{pattern})$"), 1);
            expression.unwrap().is_match(path, &budget).unwrap()
        };
        // What re.fullmatch of Python 3.12 says.
        for (pattern, path, expected) in [
            (
                r"^(?!.*(?:visual|vision)).*\.(?:q_proj|v_proj)$",
                "model.layers.0.self_attn.q_proj",
                true,
            ),
            (
                r"^(?!.*(?:visual|vision)).*\.(?:q_proj|v_proj)$",
                "vision.layers.0.self_attn.q_proj",
                false,
            ),
            (
                r"(?:(?!mlp).)*proj",
                "model.layers.0.self_attn.q_proj",
                true,
            ),
            (r"(?:(?!mlp).)*proj", "model.layers.0.mlp.up_proj", false),
            (r".*(?<=\.1)\..*_proj", "model.layers.1.mlp.up_proj", true),
            (r".*(?<=\.1)\..*_proj", "model.layers.2.mlp.up_proj", false),
            (r".*\.(\d)\1\..*", "model.layers.22.mlp.up_proj", true),
            (r".*\.(\d)\1\..*", "model.layers.21.mlp.up_proj", false),
            (r"(?=a)a|ab", "ab", true),
        ] {
            assert_eq!(whole(pattern, path), expected, "{pattern} on {path}");
        }
    }

    #[test]
    fn backtracking_is_bounded() {
        let path = format!("model.layers.0.{}", "a".repeat(60));
        let slow = r".*(?=a)(?:(a|aa)(?!b))+(?=c)c";
        let slow = Expression::new(slow, slow, 1).unwrap();
        let error = slow.is_match(&path, &MatchBudget::default()).unwrap_err();
        assert!(
            error.contains("more than 2000 steps on model.layers.0."),
            "{error}"
        );
        let long = format!("(?!{})", "a".repeat(1000));
        let error = Expression::new(&long, &long, 1).unwrap_err();
        assert!(
            error.contains("1004 bytes; an expression with look-around may have 1000"),
            "{error}"
        );
        let large = r"(?=a)(?:\w{100}){100}";
        assert!(Expression::new(large, large, 1).is_err());
        let quick = Expression::new("(?=a)a", "(?=a)a", 1).unwrap();
        let budget = MatchBudget(Cell::new(2));
        for expected in [true, true, false] {
            assert_eq!(quick.is_match("a", &budget).is_ok(), expected);
        }
    }

    #[test]
    fn broken_expressions_are_refused_with_a_reason() {
        assert!(PathPattern::new("(?!a)b(", 1).is_err());
        assert!(PathPattern::new("(?!a)b)(", 1).is_err());
        assert!(PathPattern::new("a)(b", 1).is_err());
        assert!(PathPattern::new(r"(a{1000}){1000}", 1).is_err());
    }

    #[test]
    fn expressions_of_a_field_share_a_limit() {
        let pattern = r"(?u:\w{20})x*";
        let alone = PathPattern::new(pattern, 1).err().unwrap();
        assert!(alone.contains("its part of the field's 524288"), "{alone}");
        assert!(PathPattern::new(r"[a-z]{5}x*", MAX_EXPRESSIONS).is_ok());
        assert!(PathPattern::new(r"\w{900}x*", 1).is_ok());
        assert!(PathPattern::new(r"\w{900}x*", MAX_EXPRESSIONS).is_err());
        let long = vec![r"\w{900}".to_owned(); MAX_EXPRESSIONS];
        assert!(Layers::new(&[1], &long).is_err());
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
