//! How a server is reached, by whom, and what it grants them: the flags of `lory serve` that are about connections.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::http::HeaderValue;

use super::Usage;
use auth::Keys;
use auth::keys::VARIABLE;
use server::{ServerSettings, Tls};

/// The flags.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Server")]
pub(super) struct ServerArgs {
    /// The address to listen on; 0.0.0.0 for every one of the machine's
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    pub host: IpAddr,
    /// The port; 0 takes a free one
    #[arg(long, default_value_t = 8000)]
    pub port: u16,
    /// The file of API keys, as `lory key` writes it; LORY_API_KEYS may hold keys too. Without any, only this machine may ask
    #[arg(long, value_name = "FILE")]
    keys: Option<PathBuf>,
    /// Listen beyond this machine without keys: everybody who can connect may ask, and change personas
    #[arg(long, conflicts_with = "keys")]
    no_keys: bool,
    /// Let everybody read /metrics, not only keys with admin rights
    #[arg(long)]
    open_metrics: bool,
    /// An origin whose web pages may ask, such as https://shop.example; may be given several times
    #[arg(long, value_name = "URL", value_parser = origin)]
    cors_origin: Vec<HeaderValue>,
    /// A certificate chain in PEM, for HTTPS; read again when it changes
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The certificate's key in PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// How long the headers of a request may take; a connection without a request is closed after it
    #[arg(long, value_name = "TIME", default_value = "20s", value_parser = humantime::parse_duration)]
    header_timeout: Duration,
    /// How long the body of a request may take
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = humantime::parse_duration)]
    body_timeout: Duration,
    /// How long a client may take none of its answer; then it is let go, and its request ends
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = humantime::parse_duration)]
    write_timeout: Duration,
    /// The most connections at once; one more is refused
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    max_connections: u32,
    /// How long requests under way may go on after SIGTERM, while new ones are refused
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = humantime::parse_duration)]
    drain_timeout: Duration,
}

/// An origin as browsers send it: scheme, host, and the port where it is not the scheme's own.
fn origin(text: &str) -> Result<HeaderValue, String> {
    let rule = || {
        "must be an origin, such as https://shop.example or http://localhost:3000, without a path"
            .to_owned()
    };
    let host = text
        .strip_prefix("https://")
        .or_else(|| text.strip_prefix("http://"))
        .ok_or_else(rule)?;
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.:[]".contains(c);
    if host.is_empty() || !host.chars().all(good) {
        return Err(rule());
    }
    HeaderValue::from_str(text).map_err(|_| rule())
}

impl ServerArgs {
    /// Reads the files that the flags name.
    ///
    /// # Errors
    /// A file that cannot be used; or an address beyond this machine, and neither keys nor the word that none are meant.
    pub fn settings(&self) -> anyhow::Result<ServerSettings> {
        let variable = std::env::var(VARIABLE).ok().filter(|_| !self.no_keys);
        let keys = Keys::open(self.keys.as_deref(), variable.as_deref())?;
        if keys.is_none() && !self.host.is_loopback() && !self.no_keys {
            return Err(Usage(format!(
                "--host {}: without keys everybody who can connect may ask; make one with `lory key new NAME`, and name its \
                 file with --keys; or say --no-keys if that is what you want",
                self.host
            ))
            .into());
        }
        let tls = match (&self.tls_cert, &self.tls_key) {
            (Some(cert), Some(key)) => Some(Arc::new(Tls::open(cert, key)?)),
            _ => None,
        };
        Ok(ServerSettings {
            keys: keys.map(Arc::new),
            open_metrics: self.open_metrics,
            origins: self.cors_origin.clone(),
            tls,
            header_timeout: self.header_timeout,
            body_timeout: self.body_timeout,
            write_timeout: self.write_timeout,
            max_connections: self.max_connections as usize,
            drain_timeout: self.drain_timeout,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_what_browsers_send() {
        for good in [
            "https://shop.example",
            "http://localhost:3000",
            "http://[::1]:8000",
        ] {
            assert_eq!(origin(good).unwrap(), good);
        }
        for bad in [
            "*",
            "null",
            "shop.example",
            "https://",
            "https://a/b",
            "https://A.example",
            "ftp://a",
        ] {
            assert!(origin(bad).unwrap_err().contains("without a path"), "{bad}");
        }
    }
}
