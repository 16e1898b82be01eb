//! The server's own loop: connections, their limits, TLS, what is read again while it runs, and the end.
//!
//! The end is a drain. New requests are refused with 503 while those under way go on, so that a load balancer that still sends
//! some hears why; when none is left, or the time is up, connections are closed.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;

use crate::error::ApiError;
use crate::front::{Front, Peer};
use crate::patient::Patient;
use crate::settings::{MAX_HEADERS, ServerSettings};
use crate::{Slot, router};

/// How often files are looked at that may change while the server runs.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// How long the last bytes of answers may take to leave.
const LAST_BYTES: Duration = Duration::from_secs(1);
/// A pause after a connection that could not be taken, as when the process has no more file descriptors.
const AFTER_FAILURE: Duration = Duration::from_millis(100);

/// Serves until `shutdown` resolves and what is under way then has ended, as [`ServerSettings::drain_timeout`] allows.
///
/// # Errors
/// The system's, from the listener.
pub async fn serve(
    service: impl Into<Slot>,
    listener: TcpListener,
    settings: ServerSettings,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let front = Front::new(settings);
    let router = router(service.into(), &front);
    let looking = tokio::spawn(look_again(Arc::clone(&front)));
    let room = Arc::new(Semaphore::new(front.settings.max_connections));
    let (close, closing) = watch::channel(());
    let mut connections = JoinSet::new();

    let drained = drained(Arc::clone(&front), shutdown);
    tokio::pin!(drained);
    let in_time = loop {
        let accepted = tokio::select! {
            in_time = &mut drained => break in_time,
            // Those that have ended need no place any more.
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!("a connection could not be taken: {error}");
                tokio::time::sleep(AFTER_FAILURE).await;
                continue;
            }
        };
        let connection = Connection {
            front: Arc::clone(&front),
            router: router.clone(),
            peer,
            closing: closing.clone(),
        };
        match Arc::clone(&room).try_acquire_owned() {
            Ok(place) => connections.spawn(connection.run(stream, place)),
            Err(_) => connections.spawn(connection.refuse(stream)),
        };
    };
    drop(listener);
    looking.abort();
    if !in_time {
        let left = front.under_way();
        let limit = front.settings.drain_timeout;
        tracing::warn!("{left} requests still under way after {limit:?} are cut off");
        return Ok(());
    }
    close.send_replace(());
    let all = async { while connections.join_next().await.is_some() {} };
    // A client that does not read its answer has no claim on more.
    let _ = tokio::time::timeout(LAST_BYTES, all).await;
    Ok(())
}

/// Waits for the signal, then for the requests under way; whether they ended in time.
async fn drained(front: Arc<Front>, shutdown: impl Future<Output = ()>) -> bool {
    shutdown.await;
    front.drain();
    let limit = front.settings.drain_timeout;
    if front.under_way() > 0 {
        let left = front.under_way();
        tracing::info!("stopping; {left} requests under way have {limit:?} to end");
    }
    tokio::time::timeout(limit, front.idle()).await.is_ok()
}

/// Reads keys and certificates again when their files change, or on SIGHUP.
async fn look_again(front: Arc<Front>) {
    let mut hangup = Hangup::listen();
    loop {
        let asked = tokio::select! {
            () = tokio::time::sleep(LOOK_AGAIN) => false,
            () = hangup.next() => true,
        };
        let front = Arc::clone(&front);
        // Files are read off the threads that serve.
        let _ = tokio::task::spawn_blocking(move || look(&front.settings, asked)).await;
    }
}

fn look(settings: &ServerSettings, asked: bool) {
    if let Some(keys) = &settings.keys {
        let read = if asked {
            keys.read_again().map(|()| true)
        } else {
            keys.read_if_changed()
        };
        match read {
            Ok(true) => tracing::info!("keys were read again: {} keys", keys.count()),
            Ok(false) => {}
            Err(error) => tracing::error!("{error}; the keys stay as they were"),
        }
    }
    if let Some(tls) = &settings.tls {
        match tls.read_if_changed() {
            Ok(true) => tracing::info!("the certificate was read again"),
            Ok(false) => {}
            Err(error) => tracing::error!("{error}; the certificate stays as it was"),
        }
    }
}

/// SIGHUP, where there is such a thing.
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
    front: Arc<Front>,
    router: Router,
    peer: SocketAddr,
    closing: watch::Receiver<()>,
}

impl Connection {
    async fn run(self, stream: TcpStream, _place: OwnedSemaphorePermit) {
        // Tokens are small and shall not wait for each other.
        let _ = stream.set_nodelay(true);
        let stream = Patient::new(stream, self.front.settings.write_timeout);
        let Some(tls) = &self.front.settings.tls else {
            return self.speak(stream).await;
        };
        let limit = self.front.settings.header_timeout;
        let peer = self.peer;
        match tokio::time::timeout(limit, tls.acceptor().accept(stream)).await {
            Ok(Ok(stream)) => self.speak(stream).await,
            Ok(Err(error)) => tracing::debug!("{peer}: no TLS handshake: {error}"),
            Err(_) => tracing::debug!("{peer}: no TLS handshake within {limit:?}"),
        }
    }

    async fn speak<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(mut self, stream: S) {
        let service = Peered {
            peer: Peer(self.peer.ip()),
            inner: TowerToHyperService::new(self.router.clone()),
        };
        let limit = self.front.settings.header_timeout;
        let mut connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limit)
            .max_buf_size(2 * MAX_HEADERS)
            .serve_connection(TokioIo::new(stream), service);
        let ended = tokio::select! {
            ended = &mut connection => ended,
            _ = self.closing.changed() => {
                std::pin::Pin::new(&mut connection).graceful_shutdown();
                (&mut connection).await
            }
        };
        let Err(error) = ended else {
            return;
        };
        tracing::debug!("{}: {error}", self.peer);
        let parts = connection.into_parts();
        // Of whoever began a request and did not go on; who sent nothing is simply idle.
        if error.is_timeout() && !parts.read_buf.is_empty() {
            let mut stream = parts.io.into_inner();
            let _ = stream.write_all(&ApiError::slow_headers(limit).raw()).await;
            let _ = stream.shutdown().await;
        }
    }

    /// Says that there are too many, where it can be said without a handshake.
    async fn refuse(self, mut stream: TcpStream) {
        self.front.count_refused_connection();
        let settings = &self.front.settings;
        if settings.tls.is_none() {
            let said = ApiError::too_many_connections(settings.max_connections).raw();
            let _ = tokio::time::timeout(LAST_BYTES, stream.write_all(&said)).await;
        }
    }
}

/// The router, told who asks.
struct Peered {
    peer: Peer,
    inner: TowerToHyperService<Router>,
}

impl hyper::service::Service<Request<Incoming>> for Peered {
    type Response =
        <TowerToHyperService<Router> as hyper::service::Service<Request<Incoming>>>::Response;
    type Error = <TowerToHyperService<Router> as hyper::service::Service<Request<Incoming>>>::Error;
    type Future =
        <TowerToHyperService<Router> as hyper::service::Service<Request<Incoming>>>::Future;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        request.extensions_mut().insert(self.peer);
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
