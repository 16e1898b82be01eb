//! The server's limits, keys and certificate.

use std::sync::Arc;
use std::time::Duration;

use crate::host::AllowedHost;
use crate::origin::Origin;
use crate::tls::Tls;
use auth::Keys;

/// The largest headers of a request, in bytes of names and values.
pub const MAX_HEADERS: usize = 32 << 10;
/// The longest path of a request with its query, in bytes.
pub const MAX_URI: usize = 32 << 10;
/// The largest body of a request, in bytes.
pub const MAX_BODY: usize = 4 << 20;
/// The most values of a body.
pub(crate) const MAX_VALUES: usize = 1 << 18;
/// The memory that counts for a value of a body, in bytes.
pub(crate) const VALUE_BYTES: usize = 64;
/// The least part of [`ServerSettings::body_memory`] that a key may use: a body of the largest size with 16,384 values.
pub(crate) const KEY_BODY_MEMORY: usize = MAX_BODY + 16_384 * VALUE_BYTES;

/// See the module.
#[derive(Clone)]
pub struct ServerSettings {
    /// The API keys; if none, everyone who can connect is served.
    pub keys: Option<Arc<Keys>>,
    /// Whether `/metrics` needs no key.
    pub open_metrics: bool,
    /// Further host names that clients may use, in addition to `localhost` and all addresses. Other names are refused if there are no
    /// keys, or if this is not empty.
    pub allowed_hosts: Vec<AllowedHost>,
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
    /// The most bytes of all request bodies that are being received or prepared. A key may use a quarter of it.
    pub body_memory: usize,
    /// The most connections at once. An idle one makes room for a new one; if there is none, a new one gets `/health` only.
    pub max_connections: usize,
    /// The most connections of one address, except for those of this machine.
    pub max_connections_per_address: usize,
    /// How long requests in flight may continue after the signal to stop.
    pub drain_timeout: Duration,
}

impl Default for ServerSettings {
    fn default() -> Self {
        ServerSettings {
            keys: None,
            open_metrics: false,
            allowed_hosts: Vec::new(),
            origins: Vec::new(),
            tls: None,
            header_timeout: Duration::from_secs(20),
            body_timeout: Duration::from_secs(60),
            write_timeout: Duration::from_secs(60),
            body_memory: 64 << 20,
            max_connections: 512,
            max_connections_per_address: 256,
            drain_timeout: Duration::from_secs(30),
        }
    }
}
