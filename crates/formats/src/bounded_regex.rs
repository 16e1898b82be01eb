//! Regular expressions from files and clients, with bounds on what they compile to. The engine is linear in the text; these bounds limit
//! the other factor, the size of the program.

use regex::{Error, Regex, RegexBuilder, RegexSet, RegexSetBuilder};

/// The largest program of a set of patterns, in bytes.
pub const MAX_PROGRAM: usize = 1 << 20;
/// The largest cache of a search, in bytes.
const MAX_CACHE: usize = 2 << 20;
/// The deepest nesting of a pattern.
const MAX_NESTING: u32 = 50;

/// Why patterns are refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PatternError {
    /// The index of the pattern that is not a regular expression; `None` if the patterns are too large together.
    pub index: Option<usize>,
    /// What is wrong and what to do.
    pub message: String,
}

/// A set that finds whether any of `patterns` matches. All of them together have at most [`MAX_PROGRAM`] bytes.
///
/// # Errors
/// [`PatternError`].
pub fn compile_set(patterns: &[String]) -> Result<RegexSet, PatternError> {
    let set = RegexSetBuilder::new(patterns)
        .size_limit(MAX_PROGRAM)
        .dfa_size_limit(MAX_CACHE)
        .nest_limit(MAX_NESTING)
        .build();
    set.map_err(|error| match error {
        Error::CompiledTooBig(_) => PatternError {
            index: None,
            message: format!(
                "the patterns compile to more than {} KiB together; use fewer or shorter ones, smaller counts in braces, and [a-z] instead of \\w",
                MAX_PROGRAM >> 10
            ),
        },
        error => PatternError {
            index: patterns.iter().position(|pattern| is_malformed(pattern)),
            message: reason(&error),
        },
    })
}

/// Whether `pattern` is not a regular expression. One that is too large for the small program here is not malformed.
fn is_malformed(pattern: &str) -> bool {
    let tiny: Result<Regex, Error> = RegexBuilder::new(pattern)
        .size_limit(1 << 10)
        .nest_limit(MAX_NESTING)
        .build();
    matches!(tiny, Err(error) if !matches!(error, Error::CompiledTooBig(_)))
}

/// The last line of the engine's message, which has the reason.
pub(crate) fn reason(error: &Error) -> String {
    let text = error.to_string();
    let last = text.lines().last().unwrap_or("not a regular expression");
    last.trim().trim_start_matches("error: ").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(patterns: &[&str]) -> Result<RegexSet, PatternError> {
        let patterns: Vec<String> = patterns.iter().map(|text| (*text).to_owned()).collect();
        compile_set(&patterns)
    }

    #[test]
    fn set_matches_if_one_of_its_patterns_does() {
        let matches = set(&["(?i)hello", "🎉"]).unwrap();
        assert!(matches.is_match("Oh HELLO") && matches.is_match("so 🎉"));
        assert!(!matches.is_match("hi") && !set(&[]).unwrap().is_match(""));
    }

    #[test]
    fn program_of_all_patterns_together_is_bounded() {
        assert!(set(&[r"\w+"; 20]).is_ok());
        let error = set(&[r"\w{20}"; 64]).unwrap_err();
        assert_eq!(error.index, None);
        assert!(error.message.contains("more than 1024 KiB together"));
        assert!(set(&["(a{1000}){1000}"]).is_err());
    }

    #[test]
    fn malformed_pattern_is_named_by_its_index() {
        let error = set(&[r"\w{100}", "(", "b"]).unwrap_err();
        assert_eq!(
            (error.index, error.message.as_str()),
            (Some(1), "unclosed group")
        );
        let deep = format!("{}a{}", "(".repeat(60), ")".repeat(60));
        assert_eq!(set(&["a", &deep]).unwrap_err().index, Some(1));
    }
}
