//! The server's loop: accepts connections, enforces their limits, reloads keys and certificates, and shuts down.
//!
//! A shutdown drains first: requests in flight continue and new ones are refused with 503, so that a load balancer learns why. When no
//! request is left, or the drain times out, connections are closed.

use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::app_state::AppState;
use crate::connections::{Connections, NoRoom, OpenConnection};
use crate::error::ApiError;
use crate::middleware::request_log::Peer;
use crate::routes::{probe_router, router};
use crate::server_state::ServerState;
use crate::settings::{MAX_HEADERS, ServerSettings};
use crate::write_timeout::WriteTimeout;

/// How often keys and certificates are checked for changes.
const RELOAD_INTERVAL: Duration = Duration::from_secs(2);
/// The connections beyond the limit that are answered if they request `/health`.
const MAX_PROBE_CONNECTIONS: usize = 32;
/// How long a connection beyond the limit may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the last bytes of a connection may take to be sent.
const LAST_BYTES: Duration = Duration::from_secs(1);
/// How long a client that still sends after its last response is read.
const MAX_LINGER: Duration = Duration::from_secs(5);
/// The most bytes of such a client that are read: twice the largest body.
const MAX_LINGER_BYTES: u64 = 8 << 20;
/// The pause after a connection that could not be accepted, as when the process has no more file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Serves until `shutdown` resolves, then waits up to [`ServerSettings::drain_timeout`] for the requests in flight.
///
/// # Errors
/// Errors of the listener.
pub async fn serve(
    state: impl Into<AppState>,
    listener: TcpListener,
    settings: ServerSettings,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let server = ServerState::new(settings);
    let router = router(state.into(), &server);
    let reloading = tokio::spawn(reload_files(Arc::clone(&server)));
    let limits = &server.settings;
    let open = Connections::new(limits.max_connections, limits.max_connections_per_address);
    let probes = Connections::new(MAX_PROBE_CONNECTIONS, MAX_PROBE_CONNECTIONS);
    let (close, closing) = watch::channel(());
    let mut connections = JoinSet::new();

    let drained = drain(Arc::clone(&server), shutdown);
    tokio::pin!(drained);
    let in_time = loop {
        let accepted = tokio::select! {
            in_time = &mut drained => break in_time,
            // Removes connections that have ended.
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!("cannot accept a connection: {error}");
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let connection = Connection {
            server: Arc::clone(&server),
            router: router.clone(),
            peer,
            closing: closing.clone(),
        };
        let address = peer.ip();
        match open.open(address) {
            Ok(open) => connections.spawn(connection.run(stream, open)),
            // A probe must not find a busy server dead.
            Err(why) => match probes.open(address) {
                Ok(open) => connections.spawn(connection.probe(stream, open, why)),
                Err(_) => connections.spawn(connection.refuse(stream, why)),
            },
        };
    };
    drop(listener);
    reloading.abort();
    if !in_time {
        let left = server.in_flight();
        let limit = server.settings.drain_timeout;
        tracing::warn!("{left} requests still in flight after {limit:?} are cut off");
        return Ok(());
    }
    close.send_replace(());
    let all = async { while connections.join_next().await.is_some() {} };
    // A client that does not read its response is not waited for.
    let _ = tokio::time::timeout(LAST_BYTES, all).await;
    Ok(())
}

/// Waits for the signal, then for the requests in flight. Returns whether they ended in time.
async fn drain(server: Arc<ServerState>, shutdown: impl Future<Output = ()>) -> bool {
    shutdown.await;
    server.drain();
    let limit = server.settings.drain_timeout;
    let left = server.in_flight();
    tracing::info!("shutting down: {left} requests in flight, at most {limit:?}");
    tokio::time::timeout(limit, server.idle()).await.is_ok()
}

/// Reloads keys and certificates when their files change, and keys on SIGHUP.
async fn reload_files(server: Arc<ServerState>) {
    let mut hangup = Hangup::listen();
    loop {
        let hung_up = tokio::select! {
            () = tokio::time::sleep(RELOAD_INTERVAL) => false,
            () = hangup.next() => true,
        };
        let server = Arc::clone(&server);
        // Reading files would block the threads that serve.
        let _ = tokio::task::spawn_blocking(move || reload(&server.settings, hung_up)).await;
    }
}

/// Reloads changed files; `force` reloads keys that look unchanged too.
fn reload(settings: &ServerSettings, force: bool) {
    if let Some(keys) = &settings.keys {
        let read = if force {
            keys.reload().map(|()| true)
        } else {
            keys.reload_if_changed()
        };
        match read {
            Ok(true) => tracing::info!("keys reloaded: {} keys", keys.count()),
            Ok(false) => {}
            Err(error) => tracing::error!("{error}; the previous keys stay in use"),
        }
    }
    if let Some(tls) = &settings.tls {
        match tls.read_if_changed() {
            Ok(true) => tracing::info!("certificate reloaded"),
            Ok(false) => {}
            Err(error) => tracing::error!("{error}; the previous certificate stays in use"),
        }
    }
}

/// SIGHUP; never on systems without it.
struct Hangup {
    #[cfg(unix)]
    signal: Option<tokio::signal::unix::Signal>,
}

impl Hangup {
    fn listen() -> Hangup {
        #[cfg(unix)]
        use tokio::signal::unix::{SignalKind, signal};
        Hangup {
            #[cfg(unix)]
            signal: signal(SignalKind::hangup()).ok(),
        }
    }

    async fn next(&mut self) {
        #[cfg(unix)]
        if let Some(signal) = &mut self.signal
            && signal.recv().await.is_some()
        {
            return;
        }
        std::future::pending().await
    }
}

/// One client's connection.
struct Connection {
    server: Arc<ServerState>,
    router: Router,
    peer: SocketAddr,
    closing: watch::Receiver<()>,
}

impl Connection {
    async fn run(self, stream: TcpStream, open: OpenConnection) {
        let evicted = open.clone();
        tokio::select! {
            () = self.serve(stream, open) => {}
            // It has no request in progress.
            () = evicted.closed() => {}
        }
    }

    /// The stream with its write timeout, after the TLS handshake if there is one.
    async fn stream(&self, stream: TcpStream) -> Option<Box<dyn Stream>> {
        // Tokens are small packets that must not be delayed.
        let _ = stream.set_nodelay(true);
        let stream = WriteTimeout::new(stream, self.server.settings.write_timeout);
        let Some(tls) = &self.server.settings.tls else {
            return Some(Box::new(stream));
        };
        let limit = self.server.settings.header_timeout;
        let peer = self.peer;
        match tokio::time::timeout(limit, tls.acceptor().accept(stream)).await {
            Ok(Ok(stream)) => return Some(Box::new(stream)),
            Ok(Err(error)) => tracing::debug!("{peer}: TLS handshake failed: {error}"),
            Err(_) => tracing::debug!("{peer}: no TLS handshake within {limit:?}"),
        }
        None
    }

    async fn serve(mut self, stream: TcpStream, open: OpenConnection) {
        let Some(stream) = self.stream(stream).await else {
            return;
        };
        let service = WithPeer {
            peer: Peer(self.peer.ip()),
            open: open.clone(),
            inner: TowerToHyperService::new(self.router.clone()),
        };
        let limit = self.server.settings.header_timeout;
        let mut connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limit)
            .max_buf_size(2 * MAX_HEADERS)
            .serve_connection(TokioIo::new(stream), service);
        let ended = tokio::select! {
            ended = poll_fn(|context| connection.poll_without_shutdown(context)) => ended,
            _ = self.closing.changed() => {
                std::pin::Pin::new(&mut connection).graceful_shutdown();
                let _ = connection.await;
                return;
            }
        };
        let parts = connection.into_parts();
        let mut stream = parts.io.into_inner();
        if let Err(error) = ended {
            tracing::debug!("{}: {error}", self.peer);
            // A client that sent part of a request gets an error; a client that sent nothing was idle.
            if error.is_timeout() && !parts.read_buf.is_empty() {
                let _ = stream.write_all(&ApiError::slow_headers(limit).raw()).await;
            } else if !error.is_parse() {
                return;
            }
        }
        tokio::select! {
            () = linger(stream, &open) => {}
            _ = self.closing.changed() => {}
        }
    }

    /// Answers one request of a connection beyond the limit: `/health` as ever, any other with the error.
    async fn probe(self, stream: TcpStream, open: OpenConnection, why: NoRoom) {
        self.server.count_refused_connection();
        let served = async {
            let Some(stream) = self.stream(stream).await else {
                return;
            };
            let service = WithPeer {
                peer: Peer(self.peer.ip()),
                open: open.clone(),
                inner: TowerToHyperService::new(probe_router(why)),
            };
            let mut connection = http1::Builder::new()
                .keep_alive(false)
                .max_buf_size(2 * MAX_HEADERS)
                .serve_connection(TokioIo::new(stream), service);
            match poll_fn(|context| connection.poll_without_shutdown(context)).await {
                Ok(()) => linger(connection.into_parts().io.into_inner(), &open).await,
                Err(error) => tracing::debug!("{}: {error}", self.peer),
            }
        };
        tokio::select! {
            _ = tokio::time::timeout(PROBE_TIMEOUT, served) => {}
            () = open.closed() => {}
        }
    }

    /// Closes the connection, with an error response unless that needs a TLS handshake.
    async fn refuse(self, mut stream: TcpStream, why: NoRoom) {
        self.server.count_refused_connection();
        if self.server.settings.tls.is_none() {
            let response = ApiError::too_many_connections(why).raw();
            let _ = tokio::time::timeout(LAST_BYTES, stream.write_all(&response)).await;
        }
    }
}

/// Closes a connection after its last response. If the client still sends, as when its request was refused before it arrived, what it
/// sends is read and thrown away first, within limits: a connection that is closed with unread bytes is reset, and the client may not
/// get to read the response. Meanwhile the connection is the first to make room for another one.
async fn linger(mut stream: Box<dyn Stream>, open: &OpenConnection) {
    open.end();
    let ended = async {
        // The client sees the end of the response.
        stream.shutdown().await?;
        let mut rest = stream.take(MAX_LINGER_BYTES);
        tokio::io::copy(&mut rest, &mut tokio::io::sink()).await
    };
    let _ = tokio::time::timeout(MAX_LINGER, ended).await;
}

/// The stream of a connection, with or without TLS.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// The router, which adds the client's address to each request.
struct WithPeer {
    peer: Peer,
    open: OpenConnection,
    inner: TowerToHyperService<Router>,
}

impl hyper::service::Service<Request<Incoming>> for WithPeer {
    type Response =
        <TowerToHyperService<Router> as hyper::service::Service<Request<Incoming>>>::Response;
    type Error = <TowerToHyperService<Router> as hyper::service::Service<Request<Incoming>>>::Error;
    type Future =
        <TowerToHyperService<Router> as hyper::service::Service<Request<Incoming>>>::Future;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        request.extensions_mut().insert(self.peer);
        request.extensions_mut().insert(self.open.clone());
        self.inner.call(request)
    }
}

/// Resolves on Ctrl-C, or SIGTERM where there is one.
pub async fn shutdown_signal() {
    let interrupt = async {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    #[cfg(unix)]
    let terminate = async {
        use tokio::signal::unix::{SignalKind, signal};
        match signal(SignalKind::terminate()) {
            Ok(mut signal) => {
                signal.recv().await;
            }
            Err(_) => std::future::pending().await,
        }
    };
    #[cfg(not(unix))]
    let terminate = std::future::pending::<()>();
    tokio::select! {
        () = interrupt => {}
        () = terminate => {}
    }
}
