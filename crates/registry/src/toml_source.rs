//! The text of a TOML file, for errors that name the file and the line. Knows no persona.

use std::ops::{Range, RangeInclusive};
use std::path::Path;

use formats::bounded_regex;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::error::PersonaError;

/// The path and text of a file.
#[derive(Clone, Copy)]
pub(crate) struct TomlSource<'a> {
    pub path: &'a Path,
    pub text: &'a str,
}

impl TomlSource<'_> {
    /// An error at the first line of `span`, a range of bytes.
    pub fn error(&self, span: Range<usize>, message: impl Into<String>) -> PersonaError {
        let before = &self.text.as_bytes()[..span.start.min(self.text.len())];
        PersonaError::Invalid {
            path: self.path.to_owned(),
            line: before.iter().filter(|byte| **byte == b'\n').count() + 1,
            message: message.into(),
        }
    }

    /// The error of the TOML parser, with its line.
    pub fn toml_error(&self, error: &toml::de::Error) -> PersonaError {
        let span = error.span().unwrap_or(0..0);
        let message = error.message().trim_end().replace('\n', "; ");
        // A type error does not name its key; the line does.
        let line = self
            .text
            .get(..span.start)
            .and_then(|before| before.rsplit('\n').next());
        let key = line
            .and_then(|line| line.split_once('='))
            .map(|(key, _)| key.trim());
        match key.filter(|key| message.starts_with("invalid ") && !key.is_empty()) {
            Some(key) => self.error(span, format!("{key}: {message}")),
            None => self.error(span, message),
        }
    }

    /// The span of the value `key` in a table; that of the file if there is none.
    pub fn value_span(&self, table: &str, key: &str) -> Range<usize> {
        let span = || {
            let file = DeTable::parse(self.text).ok()?;
            match file.get_ref().get(table)?.get_ref() {
                DeValue::Table(table) => Some(table.get(key)?.span()),
                _ => None,
            }
        };
        span().unwrap_or(0..0)
    }

    /// A number, checked against its range.
    pub fn number(
        &self,
        name: &str,
        value: Option<Spanned<f32>>,
        range: RangeInclusive<f32>,
    ) -> Result<Option<f32>, PersonaError> {
        let Some(value) = value else { return Ok(None) };
        if range.contains(value.get_ref()) {
            return Ok(Some(value.into_inner()));
        }
        let message = format!(
            "{name} must be from {} to {}, not {}",
            range.start(),
            range.end(),
            value.get_ref()
        );
        Err(self.error(value.span(), message))
    }

    /// Regular expressions, checked; also that they are small enough together.
    pub fn patterns(
        &self,
        name: &str,
        patterns: Vec<Spanned<String>>,
    ) -> Result<Vec<String>, PersonaError> {
        let (spans, patterns): (Vec<_>, Vec<String>) = patterns
            .into_iter()
            .map(|pattern| (pattern.span(), pattern.into_inner()))
            .unzip();
        let Err(error) = bounded_regex::compile_set(&patterns) else {
            return Ok(patterns);
        };
        let named = error.index.and_then(|index| patterns.get(index));
        let message = match named {
            Some(pattern) => format!(
                "{name}: `{pattern}` is not a regular expression: {}",
                error.message
            ),
            None => format!("{name}: {}", error.message),
        };
        let span = spans.into_iter().nth(error.index.unwrap_or(0));
        Err(self.error(span.unwrap_or_default(), message))
    }
}
