//! The server's limits, keys and certificate.

use std::sync::Arc;
use std::time::Duration;

use crate::origin::Origin;
use crate::tls::Tls;
use auth::Keys;

/// The largest headers of a request, in bytes of names and values.
pub const MAX_HEADERS: usize = 32 << 10;
/// The largest body of a request, in bytes.
pub const MAX_BODY: usize = 4 << 20;

/// See the module.
#[derive(Clone)]
pub struct ServerSettings {
    /// The API keys; if none, everyone who can connect is served.
    pub keys: Option<Arc<Keys>>,
    /// Whether `/metrics` needs no key.
    pub open_metrics: bool,
    /// The origins whose web pages may send requests.
    pub origins: Vec<Origin>,
    /// The certificate; if none, the server uses plain HTTP.
    pub tls: Option<Arc<Tls>>,
    /// How long the headers of a request, a TLS handshake or an idle connection may take.
    pub header_timeout: Duration,
    /// How long the body of a request may take.
    pub body_timeout: Duration,
    /// How long a client may read nothing of what is sent to it.
    pub write_timeout: Duration,
    /// The most connections at once.
    pub max_connections: usize,
    /// How long requests in flight may continue after the signal to stop.
    pub drain_timeout: Duration,
}

impl Default for ServerSettings {
    fn default() -> Self {
        ServerSettings {
            keys: None,
            open_metrics: false,
            origins: Vec::new(),
            tls: None,
            header_timeout: Duration::from_secs(20),
            body_timeout: Duration::from_secs(60),
            write_timeout: Duration::from_secs(60),
            max_connections: 512,
            drain_timeout: Duration::from_secs(30),
        }
    }
}
