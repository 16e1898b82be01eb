//! Origins of web pages, for CORS.

use std::str::FromStr;

use axum::http::HeaderValue;

/// The origins that a `--cors-origin` allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// `*`: every origin.
    Any,
    /// One as browsers send it: scheme, host, and the port unless it is the scheme's default.
    One(HeaderValue),
}

/// The text is not an origin.
#[derive(Debug, thiserror::Error)]
#[error(
    "must be an origin without a path, such as https://shop.example, http://localhost:3000, app://name or \
     chrome-extension://ID, or * for all origins"
)]
pub struct InvalidOrigin;

impl Origin {
    /// Whether pages of this origin are allowed.
    pub(crate) fn allows(&self, origin: &HeaderValue) -> bool {
        match self {
            Origin::Any => true,
            Origin::One(one) => one == origin,
        }
    }
}

impl FromStr for Origin {
    type Err = InvalidOrigin;

    /// Reads an origin as people write it: with a `/` at the end, in upper case, or with the scheme's default port.
    fn from_str(text: &str) -> Result<Origin, InvalidOrigin> {
        if text == "*" {
            return Ok(Origin::Any);
        }
        let text = text.to_ascii_lowercase();
        let text = text.strip_suffix('/').unwrap_or(&text);
        let (scheme, host) = text.split_once("://").ok_or(InvalidOrigin)?;
        let host = match scheme {
            "https" => host.strip_suffix(":443").unwrap_or(host),
            "http" => host.strip_suffix(":80").unwrap_or(host),
            // Browsers send `null` for pages from files.
            "file" => return Err(InvalidOrigin),
            _ => host,
        };
        // As in RFC 3986, section 3.1. Desktop apps and browser extensions have schemes of their own.
        let in_scheme = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
        let valid_scheme =
            scheme.starts_with(|c: char| c.is_ascii_alphabetic()) && scheme.chars().all(in_scheme);
        let in_host = |c: char| c.is_ascii_alphanumeric() || "-_.:[]".contains(c);
        if !valid_scheme || host.is_empty() || !host.chars().all(in_host) {
            return Err(InvalidOrigin);
        }
        HeaderValue::from_str(&format!("{scheme}://{host}"))
            .map(Origin::One)
            .map_err(|_| InvalidOrigin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_read_as_browsers_send_them() {
        for (text, sent) in [
            ("https://shop.example", "https://shop.example"),
            ("http://localhost:3000", "http://localhost:3000"),
            ("http://[::1]:8000", "http://[::1]:8000"),
            ("https://Shop.example/", "https://shop.example"),
            ("https://shop.example:443", "https://shop.example"),
            ("http://shop.example:80/", "http://shop.example"),
            ("http://shop.example:443", "http://shop.example:443"),
            ("app://obsidian.md", "app://obsidian.md"),
            ("tauri://localhost", "tauri://localhost"),
            (
                "chrome-extension://abcdefghijklmnopabcdefghijklmnop",
                "chrome-extension://abcdefghijklmnopabcdefghijklmnop",
            ),
        ] {
            let origin: Origin = text.parse().unwrap();
            assert!(
                origin.allows(&HeaderValue::from_str(sent).unwrap()),
                "{text}"
            );
            assert!(!origin.allows(&HeaderValue::from_static("https://other.example")));
        }
        let any: Origin = "*".parse().unwrap();
        assert!(any.allows(&HeaderValue::from_static("https://other.example")));
    }

    #[test]
    fn text_that_is_not_an_origin_is_rejected() {
        for text in [
            "",
            "null",
            "shop.example",
            "https://",
            "https:///",
            "https://a/b",
            "https://a//",
            "https://*",
            "file://a",
            "1a://b",
            "a b://c",
        ] {
            let error = text.parse::<Origin>().unwrap_err();
            assert!(error.to_string().contains("without a path"), "{text}");
        }
    }
}
