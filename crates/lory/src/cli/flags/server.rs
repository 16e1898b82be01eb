//! The flags of `lory serve` for connections: address, API keys, TLS, timeouts.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;

use crate::cli::exit::UsageError;
use crate::cli::flags::units::memory_size;
use auth::Keys;
use auth::keys::VARIABLE;
use server::{AllowedHost, Origin, ServerSettings, Tls};

/// Who may connect, and for how long.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Server")]
pub(crate) struct ServerArgs {
    /// The address to listen on; 0.0.0.0 for all addresses of the machine
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    pub host: IpAddr,
    /// The port to listen on; 0 for any free port
    #[arg(long, default_value_t = 8000)]
    pub port: u16,
    /// The file of API keys, as `lory key` writes it; LORY_API_KEYS may hold keys too. Without keys, only this machine can
    /// send requests
    #[arg(long, value_name = "FILE")]
    keys: Option<PathBuf>,
    /// Serve other machines without keys: everyone who can connect may send requests and change personas
    #[arg(long, conflicts_with = "keys")]
    no_keys: bool,
    /// Let everyone read /metrics, not only admin keys
    #[arg(long)]
    open_metrics: bool,
    /// A host name under which clients or a proxy reach the server, such as lory.example, or *.example; may be given several times.
    /// Addresses and localhost are always allowed; without keys, other names are refused
    #[arg(long, value_name = "NAME")]
    allowed_host: Vec<AllowedHost>,
    /// An origin whose web pages may send requests, such as https://shop.example or app://name; * for all; may be given several times
    #[arg(long, value_name = "URL")]
    cors_origin: Vec<Origin>,
    /// The certificate chain for HTTPS, in PEM; read again when the file changes
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The private key of the certificate, in PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Time limit for the headers of a request; an idle connection is closed after it
    #[arg(long, value_name = "TIME", default_value = "20s", value_parser = humantime::parse_duration)]
    header_timeout: Duration,
    /// Time limit for the body of a request
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = humantime::parse_duration)]
    body_timeout: Duration,
    /// How long a client may read nothing of its answer; then the connection is closed and the request is cancelled
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = humantime::parse_duration)]
    write_timeout: Duration,
    /// Memory for the bodies of all requests that are being read or prepared; a key may use a quarter of it
    #[arg(long, value_name = "SIZE", default_value = "64MiB", value_parser = memory_size)]
    body_memory: ByteSize,
    /// Maximum number of open connections. A new one replaces an idle one; if all have requests in progress, only /health is
    /// answered
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    max_connections: u32,
    /// Maximum number of open connections of one address, except for this machine's; set it to --max-connections if a proxy on
    /// another machine sends all requests
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    max_connections_per_address: u32,
    /// How long running requests may continue after SIGTERM, while new ones are refused
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = humantime::parse_duration)]
    drain_timeout: Duration,
}

impl ServerArgs {
    /// Reads the files that the flags name.
    ///
    /// # Errors
    /// A file is invalid; or the address is not local, and neither keys nor `--no-keys` are given.
    pub fn settings(&self) -> anyhow::Result<ServerSettings> {
        let variable = std::env::var(VARIABLE).ok().filter(|_| !self.no_keys);
        let keys = Keys::open(self.keys.as_deref(), variable.as_deref())?;
        if keys.is_none() && !self.host.is_loopback() && !self.no_keys {
            return Err(UsageError(format!(
                "--host {}: without keys everyone who can connect may send requests; make a key with `lory key new NAME` and pass \
                 its file with --keys, or pass --no-keys to allow this",
                self.host
            ))
            .into());
        }
        if keys.is_none() && self.cors_origin.contains(&Origin::Any) {
            tracing::warn!(
                "--cors-origin * without keys: every web page that someone opens on this machine may send requests and change personas"
            );
        }
        let tls = match (&self.tls_cert, &self.tls_key) {
            (Some(cert), Some(key)) => Some(Arc::new(Tls::open(cert, key)?)),
            _ => None,
        };
        Ok(ServerSettings {
            keys: keys.map(Arc::new),
            open_metrics: self.open_metrics,
            allowed_hosts: self.allowed_host.clone(),
            origins: self.cors_origin.clone(),
            tls,
            header_timeout: self.header_timeout,
            body_timeout: self.body_timeout,
            write_timeout: self.write_timeout,
            body_memory: usize::try_from(self.body_memory.as_u64()).unwrap_or(usize::MAX),
            max_connections: self.max_connections as usize,
            max_connections_per_address: self.max_connections_per_address as usize,
            drain_timeout: self.drain_timeout,
        })
    }
}
