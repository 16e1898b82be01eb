//! Host names that a server without keys answers to.
//!
//! A web page can let its own name point to this machine (DNS rebinding). The browser then takes the server for the page's own, and CORS
//! does not apply. The header Host still has the page's name, so a server that everyone may use refuses names that are not its own. A
//! page cannot do this with an IP address, and a server with keys answers nobody without one.

use std::net::IpAddr;
use std::str::FromStr;

use axum::http::uri::Authority;
use axum::http::{HeaderMap, Uri, header};

/// A host name that clients may use: `lory.example`, `*.example` for every name that ends in `.example`, or `*` for all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllowedHost(String);

/// The text is not a host name.
#[derive(Debug, thiserror::Error)]
#[error(
    "must be a host name, such as lory.example, without scheme and port; *.example for all names under it; * for every name"
)]
pub struct InvalidHost;

impl FromStr for AllowedHost {
    type Err = InvalidHost;

    fn from_str(text: &str) -> Result<AllowedHost, InvalidHost> {
        let name = text.strip_prefix("*.").unwrap_or(text);
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
        let good = !name.is_empty() && name.len() <= 253 && name.chars().all(allowed);
        match good || text == "*" {
            true => Ok(AllowedHost(text.to_ascii_lowercase())),
            false => Err(InvalidHost),
        }
    }
}

impl AllowedHost {
    fn matches(&self, name: &str) -> bool {
        match self.0.strip_prefix('*') {
            Some(suffix) => name.ends_with(suffix),
            None => self.0 == name,
        }
    }
}

/// Whether a request has several headers Host. Programs on its way may have read another one than this server.
pub(crate) fn is_ambiguous(headers: &HeaderMap) -> bool {
    headers.get_all(header::HOST).iter().nth(1).is_some()
}

/// The host of a request that the server must refuse, as the request names it: in its first line, or in the header Host. If it has both,
/// both must be the server's.
pub(crate) fn refused<'r>(
    headers: &'r HeaderMap,
    uri: &'r Uri,
    allowed: &[AllowedHost],
) -> Option<&'r str> {
    let in_line = uri.authority().map(Authority::as_str);
    // Every browser sends the header.
    let in_headers = headers.get_all(header::HOST).iter().map(|host| {
        let ascii = host.to_str();
        ascii.unwrap_or("a name with other characters than ASCII")
    });
    let mut hosts = in_line.into_iter().chain(in_headers);
    hosts.find(|host| !is_own(host, allowed))
}

fn is_own(host: &str, allowed: &[AllowedHost]) -> bool {
    let name = without_port(host).to_ascii_lowercase();
    let name = name.strip_suffix('.').unwrap_or(&name);
    name.parse::<IpAddr>().is_ok()
        || name == "localhost"
        || name.ends_with(".localhost")
        || allowed.iter().any(|one| one.matches(name))
}

/// A host without its port, and an IPv6 address without its brackets.
fn without_port(host: &str) -> &str {
    if let Some(rest) = host.strip_prefix('[') {
        return rest.split(']').next().unwrap_or(rest);
    }
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(allowed: &[&str], host: &str) -> bool {
        let allowed: Vec<AllowedHost> = allowed.iter().map(|one| one.parse().unwrap()).collect();
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, host.parse().unwrap());
        refused(&headers, &Uri::from_static("/generate"), &allowed).is_none()
    }

    #[test]
    fn addresses_localhost_and_allowed_names_are_the_servers_own() {
        for host in [
            "127.0.0.1:8000",
            "10.1.2.3",
            "[::1]:8000",
            "[fe80::1]",
            "localhost",
            "LOCALHOST:8000",
            "localhost.",
            "studio.localhost:3000",
        ] {
            assert!(allows(&[], host), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:8000",
            "notlocalhost",
            "127.0.0.1.evil.example",
            "",
        ] {
            assert!(!allows(&[], host), "{host}");
        }
        assert!(allows(&["Lory.example"], "lory.example:443"));
        assert!(!allows(&["lory.example"], "evil.lory.example"));
        assert!(allows(&["*.example"], "a.b.example"));
        assert!(!allows(&["*.example"], "badexample"));
        assert!(allows(&["*"], "anything.at.all"));
        for wrong in ["", "http://lory.example", "lory.example:80", "a*b", "*."] {
            assert!(wrong.parse::<AllowedHost>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn name_in_the_request_line_counts() {
        let headers = HeaderMap::new();
        let evil = Uri::from_static("http://evil.example/generate");
        assert_eq!(refused(&headers, &evil, &[]), Some("evil.example"));
        assert_eq!(refused(&headers, &Uri::from_static("/generate"), &[]), None);
        // Each of several names counts.
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, "localhost".parse().unwrap());
        assert_eq!(refused(&headers, &evil, &[]), Some("evil.example"));
        headers.insert(header::HOST, "evil.example".parse().unwrap());
        let own = Uri::from_static("http://localhost/generate");
        assert_eq!(refused(&headers, &own, &[]), Some("evil.example"));
        assert!(!is_ambiguous(&headers));
        headers.append(header::HOST, "localhost".parse().unwrap());
        assert!(is_ambiguous(&headers));
    }
}
