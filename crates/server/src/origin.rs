//! Origins of web pages, for CORS.

use std::str::FromStr;

use axum::http::HeaderValue;

/// An origin as browsers send it: scheme, host, and the port unless it is the scheme's default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin(HeaderValue);

/// The text is not an origin.
#[derive(Debug, thiserror::Error)]
#[error("must be an origin, such as https://shop.example or http://localhost:3000, without a path")]
pub struct InvalidOrigin;

impl Origin {
    pub(crate) fn header(&self) -> &HeaderValue {
        &self.0
    }
}

impl FromStr for Origin {
    type Err = InvalidOrigin;

    fn from_str(text: &str) -> Result<Origin, InvalidOrigin> {
        let host = text
            .strip_prefix("https://")
            .or_else(|| text.strip_prefix("http://"))
            .ok_or(InvalidOrigin)?;
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.:[]".contains(c);
        if host.is_empty() || !host.chars().all(allowed) {
            return Err(InvalidOrigin);
        }
        HeaderValue::from_str(text)
            .map(Origin)
            .map_err(|_| InvalidOrigin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_has_a_scheme_and_a_host_in_lower_case() {
        for text in [
            "https://shop.example",
            "http://localhost:3000",
            "http://[::1]:8000",
        ] {
            assert_eq!(text.parse::<Origin>().unwrap().header(), text);
        }
        for text in [
            "*",
            "null",
            "shop.example",
            "https://",
            "https://a/b",
            "https://A.example",
            "ftp://a",
        ] {
            let error = text.parse::<Origin>().unwrap_err();
            assert!(error.to_string().contains("without a path"), "{text}");
        }
    }
}
