//! HTTPS, and certificates that change while the server runs.

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use server::{ServerSettings, Tls};
use service::Settings;
use testkit::server::TestServer;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, Stream};

use crate::setup;

const CERT: &str = include_str!("tls/cert.pem");
const KEY: &str = include_str!("tls/key.pem");

fn client() -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(CERT.as_bytes()).unwrap())
        .unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    Arc::new(config)
}

fn get(server: &TestServer, path: &str) -> String {
    let mut socket = server.connect();
    let name = ServerName::try_from("localhost").unwrap();
    let mut connection = ClientConnection::new(client(), name).unwrap();
    let mut stream = Stream::new(&mut connection, &mut socket);
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8(answer).unwrap()
}

fn write_pair(folder: &Path, cert: &str, key: &str) {
    std::fs::write(folder.join("cert.pem"), cert).unwrap();
    std::fs::write(folder.join("key.pem"), key).unwrap();
}

fn open(folder: &Path) -> Result<Tls, String> {
    Tls::open(&folder.join("cert.pem"), &folder.join("key.pem")).map_err(|error| error.to_string())
}

#[test]
fn tls_server_answers_https_and_not_http() {
    let folder = tempfile::tempdir().unwrap();
    write_pair(folder.path(), CERT, KEY);
    let settings = ServerSettings {
        tls: Some(Arc::new(open(folder.path()).unwrap())),
        header_timeout: Duration::from_secs(2),
        ..ServerSettings::default()
    };
    let server = TestServer::start_with(setup::service(&Settings::default()), settings);
    let answer = get(&server, "/v1/models");
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.contains("\"warm\""),
        "{answer}"
    );
    let answer = server.send_raw(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert!(!answer.starts_with("HTTP"), "{answer:?}");
    // A connection that never begins the handshake is closed.
    let mut silent = server.connect();
    assert_eq!(silent.read(&mut [0; 1]).unwrap(), 0);
    // A broken certificate leaves the one before in use.
    write_pair(folder.path(), "no certificate", KEY);
    std::thread::sleep(Duration::from_millis(2500));
    assert!(get(&server, "/health").starts_with("HTTP/1.1 200"));
}

#[test]
fn unusable_certificate_or_key_is_rejected_by_file_name() {
    let folder = tempfile::tempdir().unwrap();
    assert!(open(folder.path()).err().unwrap().contains("cert.pem: "));
    for (cert, key, expected) in [
        ("", KEY, "cert.pem: has no certificate"),
        (CERT, "", "key.pem: "),
        (CERT, CERT, "key.pem: "),
        (KEY, KEY, "cert.pem: has no certificate"),
    ] {
        write_pair(folder.path(), cert, key);
        let error = open(folder.path()).err().unwrap();
        assert!(error.contains(expected), "{error}");
        assert!(!error.contains("PRIVATE KEY-----\nM"), "{error}");
    }
}
