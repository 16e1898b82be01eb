//! Reads query parameters by name, and refuses unknown ones.

use std::str::FromStr;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;

use crate::error::ApiError;
use jobs::{MAX_PAGE, Page};

/// The parameters of a request. Take each one by name, then call [`Query::end`], which refuses the others.
pub(super) struct Query(Vec<(String, String)>);

impl<S: Send + Sync> FromRequestParts<S> for Query {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Query, ApiError> {
        let read = axum::extract::Query::<Vec<(String, String)>>::try_from_uri(&parts.uri);
        let read = read.map_err(|rejection| {
            ApiError::bad_request("invalid_query", rejection.body_text(), None)
        })?;
        Ok(Query(read.0))
    }
}

fn invalid(name: &str, message: String) -> ApiError {
    ApiError::bad_request("invalid_value", message, Some(name.to_owned()))
}

impl Query {
    /// The text of a parameter.
    pub fn text(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        let Some(at) = self.0.iter().position(|(other, _)| other == name) else {
            return Ok(None);
        };
        let (_, value) = self.0.remove(at);
        if self.0.iter().any(|(other, _)| other == name) {
            return Err(invalid(name, format!("{name} is given twice")));
        }
        Ok(Some(value))
    }

    /// A number within a range.
    pub fn number<T>(&mut self, name: &str, least: T, most: T) -> Result<Option<T>, ApiError>
    where
        T: FromStr + PartialOrd + std::fmt::Display,
    {
        let Some(text) = self.text(name)? else {
            return Ok(None);
        };
        match text.parse::<T>() {
            Ok(number) if number >= least && number <= most => Ok(Some(number)),
            _ => {
                let shown: String = text.chars().take(40).collect();
                let message =
                    format!("{name} must be a number from {least} to {most}, not {shown}");
                Err(invalid(name, message))
            }
        }
    }

    /// `after` and `limit`, and `order` if the route has it.
    pub fn page(&mut self, default: usize, most: usize, ordered: bool) -> Result<Page, ApiError> {
        let newest_first = match ordered.then(|| self.text("order")).transpose()?.flatten() {
            None => true,
            Some(order) => match order.as_str() {
                "desc" => true,
                "asc" => false,
                _ => return Err(invalid("order", "order must be asc or desc".to_owned())),
            },
        };
        Ok(Page {
            after: self.text("after")?,
            limit: self.number("limit", 1, most)?.unwrap_or(default),
            newest_first,
        })
    }

    /// [`Query::page`] with the limits of OpenAI's lists of jobs.
    pub fn short_page(&mut self) -> Result<Page, ApiError> {
        self.page(20, MAX_PAGE, false)
    }

    /// Every `metadata[key]=value`.
    pub fn metadata(&mut self) -> Vec<(String, String)> {
        let key = |name: &str| {
            let key = name.strip_prefix("metadata[")?.strip_suffix(']')?;
            Some(key.to_owned())
        };
        let mut found = Vec::new();
        self.0.retain(|(name, value)| match key(name) {
            Some(key) => {
                found.push((key, value.clone()));
                false
            }
            None => true,
        });
        found
    }

    /// Refuses parameters that were not taken.
    pub fn end(self) -> Result<(), ApiError> {
        match self.0.first() {
            None => Ok(()),
            Some((name, _)) => {
                let name: String = name.chars().take(80).collect();
                let message = format!("unknown parameter {name:?}");
                Err(ApiError::bad_request("unknown_field", message, Some(name)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(pairs: &[(&str, &str)]) -> Query {
        let pair = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Query(pairs.iter().map(pair).collect())
    }

    #[test]
    fn known_parameters_are_read_and_unknown_ones_refused() {
        let mut good = query(&[("limit", "3"), ("metadata[a]", "b"), ("after", "x")]);
        let page = good.short_page().unwrap();
        assert_eq!((page.limit, page.after.as_deref()), (3, Some("x")));
        assert_eq!(good.metadata(), [("a".to_owned(), "b".to_owned())]);
        good.end().unwrap();
        let mut bad = query(&[("limit", "0"), ("order", "up"), ("a", "1"), ("a", "2")]);
        assert!(bad.short_page().is_err());
        assert!(bad.page(1, 2, true).is_err());
        assert!(bad.text("a").is_err());
        assert!(bad.end().is_err());
    }
}
