//! The HTTP server: JSON and server-sent events on one side, [`crate::service`] on the other. Knows no tokens, no
//! templates and no persona folders.
//!
//! Files are named for what a client does; `json` reads bodies, `error` is the one place where errors get a status. In front of
//! the routes are `front` (every request) and `guard` (those that need a key); `server` is the loop, `tls` its certificate.

mod answers;
mod chat_completions;
mod chat_request;
mod chat_tools;
mod completions;
mod embeddings;
mod envelope;
mod error;
mod evaluations;
mod events;
mod files;
mod fine_tuning;
mod front;
mod generate;
mod guard;
mod health;
mod json;
mod load_lora_adapter;
mod logprobs;
mod lora_adapters;
mod metrics;
mod models;
mod openapi;
mod patient;
mod personas;
mod query;
mod server;
mod settings;
mod studio;
mod tls;
mod votes;
mod with_sampling;

use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderName, Method, header};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{get, post};
use tower_http::cors::CorsLayer;

pub use server::{serve, shutdown_signal};
pub use settings::{MAX_BODY, MAX_HEADERS, ServerSettings};
pub use tls::{Tls, TlsError};

use error::ApiError;
use front::Front;
use jobs::{EvaluationResults, JobError, Jobs, ResultError};
use service::Service;

/// Every route, by who may ask it.
fn router(slot: Slot, front: &Arc<Front>) -> Router {
    let open = Router::new()
        .route("/", get(studio::routes::page))
        .route("/studio/{file}", get(studio::routes::file))
        .route("/health", get(health::health))
        .route("/ready", get(health::ready))
        .route("/openapi.json", get(openapi::document))
        .route("/docs", get(openapi::docs));
    let metrics = Router::new()
        .route("/metrics", get(metrics::metrics))
        .route_layer(from_fn(guard::metrics));
    let asking = Router::new()
        .route("/generate", post(generate::generate))
        .route(
            "/v1/chat/completions",
            post(chat_completions::chat_completions),
        )
        .route("/v1/completions", post(completions::completions))
        .route("/v1/embeddings", post(embeddings::embeddings))
        .route("/v1/models", get(models::models))
        .route("/v1/votes", get(votes::votes).post(votes::vote))
        .route_layer(from_fn(guard::any_key));
    let admin = Router::new()
        .route("/v1/lora_adapters", get(lora_adapters::lora_adapters))
        .route("/v1/evaluations", get(evaluations::list))
        .merge(personas::router())
        .route_layer(from_fn(guard::admin));
    let training = files::router()
        .merge(fine_tuning::router())
        .merge(evaluations::router())
        .route_layer(from_fn(guard::training));
    let mut router = open
        .merge(metrics)
        .merge(training)
        .merge(asking)
        .merge(admin)
        .fallback(error::not_found)
        .method_not_allowed_fallback(error::method_not_allowed)
        .layer(DefaultBodyLimit::max(MAX_BODY));
    // Without origins nothing of it is there, and a browser keeps the pages of others away.
    if !front.settings.origins.is_empty() {
        router = router.layer(cors(front));
    }
    router
        .layer(from_fn_with_state(Arc::clone(front), front::front))
        .with_state(slot)
}

/// Lets web pages of the origins that were named ask.
fn cors(front: &Front) -> CorsLayer {
    let request_id = HeaderName::from_static("x-request-id");
    CorsLayer::new()
        .allow_origin(front.settings.origins.clone())
        .allow_methods([Method::GET, Method::POST, Method::PUT, Method::DELETE])
        .allow_headers([
            header::AUTHORIZATION,
            header::CONTENT_TYPE,
            request_id.clone(),
        ])
        .expose_headers([header::RETRY_AFTER, request_id])
}

/// Where the service will be once its base is loaded; the server may run before. Clones are the same place.
#[derive(Clone)]
pub struct Slot(Arc<Place>);

struct Place {
    service: OnceLock<Arc<Service>>,
    /// The queue, or why there is none.
    jobs: OnceLock<Result<Arc<Jobs>, String>>,
    /// The results of evaluations; by default there are none.
    results: OnceLock<EvaluationResults>,
    /// When the server began, in seconds since 1970: what `/v1/models` gives as `created`.
    created: u64,
}

impl Slot {
    /// An empty place: `/health` answers, `/ready` and everything else say that the base is loading.
    pub fn loading() -> Slot {
        Slot(Arc::new(Place {
            service: OnceLock::new(),
            jobs: OnceLock::new(),
            results: OnceLock::new(),
            created: seconds_since_1970(),
        }))
    }

    /// Puts the service in its place; the first one stays.
    pub fn fill(&self, service: Arc<Service>) {
        let _ = self.0.service.set(service);
    }

    /// Puts the queue of training jobs in its place, or why there is none; the first one stays. Comes before [`Slot::fill`], so
    /// that whoever finds the service finds this too.
    pub fn train(&self, jobs: Result<Arc<Jobs>, String>) {
        let _ = self.0.jobs.set(jobs);
    }

    /// Sets where results of evaluations are stored; the first one stays. Comes before [`Slot::fill`].
    pub fn store_results(&self, results: EvaluationResults) {
        let _ = self.0.results.set(results);
    }

    fn results(&self) -> Result<EvaluationResults, ResultError> {
        self.0.results.get().cloned().ok_or(ResultError::Off)
    }

    fn jobs(&self) -> Result<Arc<Jobs>, ApiError> {
        self.service()?;
        let why = match self.0.jobs.get() {
            Some(Ok(jobs)) => return Ok(Arc::clone(jobs)),
            Some(Err(why)) => why.clone(),
            None => "it was started without a folder for them".to_owned(),
        };
        Err(JobError::NoJobs { why }.into())
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
