//! Checks the normalizer and the pre-tokenizer of a `tokenizer.json` before the tokenizers library reads them. The library
//! panics on some steps, and others make a text longer without a bound.

use serde_json::Value;

use super::error::TokenizerError;

/// The most steps of both parts together.
const MAX_STEPS: usize = 32;
/// The longest expression, in bytes; the longest in use have some 500.
const MAX_EXPRESSION: usize = 4 << 10;
/// The longest text that a step inserts, in bytes.
const MAX_INSERTED: usize = 64;
/// How many times longer all steps together may make a text, in bytes.
const MAX_GROWTH: usize = 128;

const NORMALIZERS: &str = "Sequence, NFC, NFD, NFKC, NFKD, Lowercase, Strip, StripAccents, Prepend, Replace and ByteLevel";
const PRE_TOKENIZERS: &str = "Sequence, ByteLevel, Metaspace, Split, Digits, Punctuation, Whitespace, WhitespaceSplit, \
                              CharDelimiterSplit, UnicodeScripts and FixedLength";

/// Refuses steps that the library cannot run safely.
///
/// # Errors
/// [`TokenizerError`], naming the part and what is wrong with its step.
pub(super) fn check(
    normalizer: &Value,
    pre_tokenizer: &Value,
    origin: &str,
) -> Result<(), TokenizerError> {
    let mut steps = Steps {
        count: 0,
        growth: 1,
        origin,
    };
    steps.normalizer(normalizer)?;
    steps.pre_tokenizer(pre_tokenizer)
}

/// What was found in the steps so far.
struct Steps<'a> {
    count: usize,
    /// How many times longer a text may be after them.
    growth: usize,
    origin: &'a str,
}

impl Steps<'_> {
    fn normalizer(&mut self, step: &Value) -> Result<(), TokenizerError> {
        let part = "normalizer";
        if step.is_null() {
            return Ok(());
        }
        self.count(part)?;
        // The growth of UTF-8 text in the worst case: https://unicode.org/faq/normalization.html
        let growth = match self.kind(step, part, NORMALIZERS)? {
            "Sequence" => {
                let steps = step.get("normalizers").and_then(Value::as_array);
                return steps
                    .into_iter()
                    .flatten()
                    .try_for_each(|step| self.normalizer(step));
            }
            "NFC" | "NFD" => 3,
            "NFKC" | "NFKD" => 11,
            "Lowercase" | "ByteLevel" => 2,
            "Strip" | "StripAccents" => 1,
            "Prepend" => {
                self.inserted(step.get("prepend"), part)?;
                1
            }
            "Replace" => self.replace(step)?,
            other => return Err(self.unsupported(part, other, NORMALIZERS)),
        };
        self.grow(growth, part)
    }

    fn pre_tokenizer(&mut self, step: &Value) -> Result<(), TokenizerError> {
        let part = "pre_tokenizer";
        if step.is_null() {
            return Ok(());
        }
        self.count(part)?;
        let growth = match self.kind(step, part, PRE_TOKENIZERS)? {
            "Sequence" => {
                let steps = step.get("pretokenizers").and_then(Value::as_array);
                return steps
                    .into_iter()
                    .flatten()
                    .try_for_each(|step| self.pre_tokenizer(step));
            }
            "Split" => {
                self.expression(step, part)?;
                1
            }
            // A space becomes a character of at most four bytes.
            "Metaspace" => 4,
            "ByteLevel" => 2,
            "FixedLength" if step.get("length").and_then(Value::as_u64) == Some(0) => {
                return Err(
                    self.invalid(part, "FixedLength needs a length of at least 1".to_owned())
                );
            }
            "Digits" | "Punctuation" | "Whitespace" | "WhitespaceSplit" | "CharDelimiterSplit"
            | "UnicodeScripts" | "FixedLength" => 1,
            other => return Err(self.unsupported(part, other, PRE_TOKENIZERS)),
        };
        self.grow(growth, part)
    }

    /// How many times longer a `Replace` may make a text.
    fn replace(&self, step: &Value) -> Result<usize, TokenizerError> {
        let part = "normalizer";
        let inserted = self.inserted(step.get("content"), part)?;
        let replaced = match self.expression(step, part)? {
            Expression::Text(text) => text.len(),
            Expression::Regex(expression) => {
                // Only an expression without look-around says how short its matches are.
                let parsed = regex_syntax::parse(expression).map_err(|error| {
                    let line = error
                        .to_string()
                        .lines()
                        .last()
                        .unwrap_or_default()
                        .to_owned();
                    self.invalid(
                        part,
                        format!("Replace: {expression:?} is not supported: {line}"),
                    )
                })?;
                parsed.properties().minimum_len().unwrap_or(0)
            }
        };
        if replaced == 0 {
            let problem = "Replace: its pattern also matches an empty text".to_owned();
            return Err(self.invalid(part, problem));
        }
        Ok(inserted.div_ceil(replaced))
    }

    fn expression<'v>(
        &self,
        step: &'v Value,
        part: &'static str,
    ) -> Result<Expression<'v>, TokenizerError> {
        let pattern = step.get("pattern");
        let of = |key: &str| pattern?.get(key)?.as_str();
        let (expression, length) = match (of("String"), of("Regex")) {
            (Some(text), None) => (Expression::Text(text), text.len()),
            (None, Some(regex)) => (Expression::Regex(regex), regex.len()),
            _ => {
                let problem =
                    "a pattern is {\"String\": text} or {\"Regex\": expression}".to_owned();
                return Err(self.invalid(part, problem));
            }
        };
        if length > MAX_EXPRESSION {
            let problem = format!("a pattern of {length} bytes; at most {MAX_EXPRESSION} are read");
            return Err(self.invalid(part, problem));
        }
        Ok(expression)
    }

    /// The length of the text that a step inserts.
    fn inserted(&self, text: Option<&Value>, part: &'static str) -> Result<usize, TokenizerError> {
        let length = text.and_then(Value::as_str).map_or(0, str::len);
        if length > MAX_INSERTED {
            let problem =
                format!("a step inserts {length} bytes; at most {MAX_INSERTED} are inserted");
            return Err(self.invalid(part, problem));
        }
        Ok(length)
    }

    fn count(&mut self, part: &'static str) -> Result<(), TokenizerError> {
        self.count += 1;
        if self.count > MAX_STEPS {
            let problem = format!(
                "the normalizer and the pre-tokenizer have more than {MAX_STEPS} steps together"
            );
            return Err(self.invalid(part, problem));
        }
        Ok(())
    }

    fn grow(&mut self, growth: usize, part: &'static str) -> Result<(), TokenizerError> {
        self.growth = self.growth.saturating_mul(growth.max(1));
        if self.growth > MAX_GROWTH {
            let problem = format!(
                "its steps may make a text {} times longer; at most {MAX_GROWTH} times is run",
                self.growth
            );
            return Err(self.invalid(part, problem));
        }
        Ok(())
    }

    fn kind<'v>(
        &self,
        step: &'v Value,
        part: &'static str,
        supported: &'static str,
    ) -> Result<&'v str, TokenizerError> {
        let kind = step.get("type").and_then(Value::as_str);
        kind.ok_or_else(|| self.unsupported(part, "(no type)", supported))
    }

    fn unsupported(
        &self,
        key: &'static str,
        found: &str,
        supported: &'static str,
    ) -> TokenizerError {
        TokenizerError::Unsupported {
            origin: self.origin.to_owned(),
            key,
            found: found.chars().take(60).collect(),
            supported,
        }
    }

    fn invalid(&self, key: &'static str, problem: String) -> TokenizerError {
        TokenizerError::Invalid {
            origin: self.origin.to_owned(),
            key,
            problem,
        }
    }
}

/// What a step looks for.
enum Expression<'v> {
    Text(&'v str),
    Regex(&'v str),
}
