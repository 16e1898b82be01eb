//! A certificate and its key from PEM files, reloaded when they change, as those of Let's Encrypt do every few weeks.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject as _};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, ServerConfig};

/// A certificate that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is missing or not PEM.
    #[error("{}: {source}", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: pem::Error,
    },
    /// The file has no certificate.
    #[error("{}: has no certificate; it must be PEM with a block BEGIN CERTIFICATE", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// The certificate and the key cannot be used together.
    #[error("{} with {}: {source}", cert.display(), key.display())]
    Unusable {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's.
        key: PathBuf,
        /// What is wrong.
        source: rustls::Error,
    },
}

/// The current certificate.
pub struct Tls {
    cert: PathBuf,
    key: PathBuf,
    state: RwLock<State>,
}

struct State {
    config: Arc<ServerConfig>,
    seen: [Option<SystemTime>; 2],
}

impl Tls {
    /// Reads the chain in `cert`, the server's own certificate first, and its key.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn open(cert: &Path, key: &Path) -> Result<Tls, TlsError> {
        let state = State {
            seen: [modified(cert), modified(key)],
            config: read(cert, key)?,
        };
        Ok(Tls {
            cert: cert.to_owned(),
            key: key.to_owned(),
            state: RwLock::new(state),
        })
    }

    /// For the next connection.
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        TlsAcceptor::from(Arc::clone(&state.config))
    }

    /// Reloads the files if they changed since the last call.
    ///
    /// # Errors
    /// [`TlsError`]; the previous certificate then stays in use.
    pub(super) fn read_if_changed(&self) -> Result<bool, TlsError> {
        let now = [modified(&self.cert), modified(&self.key)];
        {
            let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
            if state.seen == now {
                return Ok(false);
            }
            state.seen = now;
        }
        let config = read(&self.cert, &self.key)?;
        self.state
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .config = config;
        Ok(true)
    }
}

fn modified(path: &Path) -> Option<SystemTime> {
    path.metadata()
        .and_then(|metadata| metadata.modified())
        .ok()
}

fn read(cert: &Path, key: &Path) -> Result<Arc<ServerConfig>, TlsError> {
    let pem = |path: &Path, source| TlsError::Pem {
        path: path.to_owned(),
        source,
    };
    let chain = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|source| pem(cert, source))?;
    if chain.is_empty() {
        let path = cert.to_owned();
        return Err(TlsError::Empty { path });
    }
    let secret = PrivateKeyDer::from_pem_file(key).map_err(|source| pem(key, source))?;
    let unusable = |source| TlsError::Unusable {
        cert: cert.to_owned(),
        key: key.to_owned(),
        source,
    };
    // ring needs only a C compiler to build; the other provider needs cmake.
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .with_no_client_auth()
        .with_single_cert(chain, secret)
        .map_err(unusable)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
