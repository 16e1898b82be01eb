//! The HTTP server: JSON and server-sent events on one side, [`crate::service`] on the other. Knows no tokens, no
//! templates and no persona folders.
//!
//! Files are named for what a client does; `json` reads bodies, `error` is the one place where errors get a status.

mod chat_completions;
mod chat_request;
mod chat_tools;
mod completions;
mod embeddings;
mod envelope;
mod error;
mod events;
mod generate;
mod health;
mod json;
mod load_lora_adapter;
mod logprobs;
mod lora_adapters;
mod metrics;
mod models;
mod personas;

use std::future::Future;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::service::Service;
use error::ApiError;

/// The largest body of a request, in bytes.
pub const MAX_BODY: usize = 4 << 20;
/// How long requests under way may go on after the signal to stop.
const GRACE: Duration = Duration::from_secs(30);

/// Every route.
fn router(slot: Slot) -> Router {
    Router::new()
        .route("/generate", post(generate::generate))
        .route(
            "/v1/chat/completions",
            post(chat_completions::chat_completions),
        )
        .route("/v1/completions", post(completions::completions))
        .route("/v1/embeddings", post(embeddings::embeddings))
        .route("/v1/models", get(models::models))
        .route("/v1/lora_adapters", get(lora_adapters::lora_adapters))
        .route("/metrics", get(metrics::metrics))
        .route("/health", get(health::health))
        .route("/ready", get(health::ready))
        .merge(personas::router())
        .fallback(error::not_found)
        .method_not_allowed_fallback(error::method_not_allowed)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(slot)
}

/// Where the service will be once its base is loaded; the server may run before. Clones are the same place.
#[derive(Clone)]
pub struct Slot(Arc<Place>);

struct Place {
    service: OnceLock<Arc<Service>>,
    /// When the server began, in seconds since 1970: what `/v1/models` gives as `created`.
    created: u64,
}

impl Slot {
    /// An empty place: `/health` answers, `/ready` and everything else say that the base is loading.
    pub fn loading() -> Slot {
        Slot(Arc::new(Place {
            service: OnceLock::new(),
            created: seconds_since_1970(),
        }))
    }

    /// Puts the service in its place; the first one stays.
    pub fn fill(&self, service: Arc<Service>) {
        let _ = self.0.service.set(service);
    }

    fn service(&self) -> Result<Arc<Service>, ApiError> {
        let service = self.0.service.get().cloned();
        service.ok_or_else(ApiError::loading)
    }

    fn created(&self) -> u64 {
        self.0.created
    }
}

impl From<Arc<Service>> for Slot {
    fn from(service: Arc<Service>) -> Slot {
        let slot = Slot::loading();
        slot.fill(service);
        slot
    }
}

fn seconds_since_1970() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// Serves until `shutdown` resolves, then takes no new connection and lets requests under way finish, for half a minute at
/// most.
///
/// # Errors
/// The system's, from the listener.
pub async fn serve(
    service: impl Into<Slot>,
    listener: TcpListener,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let (stop, mut stopping) = watch::channel(false);
    let signal = async move {
        shutdown.await;
        stop.send_replace(true);
    };
    let server = axum::serve(listener, router(service.into())).with_graceful_shutdown(signal);
    let overdue = async move {
        let _ = stopping.wait_for(|stop| *stop).await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        ended = async { server.await } => ended,
        () = overdue => {
            tracing::warn!("requests still under way after {GRACE:?} are cut off");
            Ok(())
        }
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
