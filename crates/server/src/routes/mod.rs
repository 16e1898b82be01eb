//! All routes, grouped by who may call them. To add a route, write a handler with `#[utoipa::path]` and list it here: method, path
//! and description come from the attribute. Handlers must not know each other.

mod chat_completions;
mod completions;
mod embeddings;
mod evaluations;
mod files;
mod fine_tuning;
mod generate;
mod health;
mod load_lora_adapter;
mod lora_adapters;
mod metrics;
mod models;
pub(crate) mod personas;
mod votes;

use std::sync::Arc;

use axum::extract::DefaultBodyLimit;
use axum::middleware::from_fn_with_state;
use axum::routing::get;
use axum::{Extension, Router};
use utoipa::openapi::OpenApi;
use utoipa_axum::router::{OpenApiRouter, UtoipaMethodRouterExt as _};
use utoipa_axum::routes;

use crate::app_state::AppState;
use crate::connections::NoRoom;
use crate::error::ApiError;
use crate::middleware::auth::{self, Access};
use crate::middleware::{cors, request_log};
use crate::openapi::{self, Document};
use crate::server_state::ServerState;
use crate::settings::MAX_BODY;
use crate::{error, studio};

/// Every route with its description.
fn routes() -> OpenApiRouter<AppState> {
    let open = OpenApiRouter::new()
        .routes(routes!(studio::routes::page))
        .routes(routes!(studio::routes::file))
        .routes(routes!(health::health))
        .routes(routes!(health::ready))
        .routes(routes!(openapi::document))
        .routes(routes!(openapi::docs));

    let metrics = OpenApiRouter::new().routes(routes!(metrics::metrics));

    let any_key = OpenApiRouter::new()
        .routes(routes!(generate::generate))
        .routes(routes!(chat_completions::chat_completions))
        .routes(routes!(completions::completions))
        .routes(routes!(embeddings::embeddings))
        .routes(routes!(models::models))
        .routes(routes!(models::retrieve))
        .route("/v1/models/{owner}/{name}", get(models::retrieve_owned))
        .routes(routes!(votes::votes, votes::vote));

    let training = OpenApiRouter::new()
        .routes(routes!(files::list, files::create).layer(DefaultBodyLimit::max(files::MAX_FORM)))
        .routes(routes!(files::retrieve, files::delete))
        .routes(routes!(files::content))
        .routes(routes!(files::lint))
        .routes(routes!(files::rows))
        .routes(routes!(fine_tuning::plan))
        .routes(routes!(fine_tuning::list, fine_tuning::create))
        .routes(routes!(fine_tuning::retrieve, fine_tuning::delete))
        .routes(routes!(fine_tuning::cancel))
        .routes(routes!(fine_tuning::pause))
        .routes(routes!(fine_tuning::resume))
        .routes(routes!(fine_tuning::publish))
        .routes(routes!(fine_tuning::events))
        .routes(routes!(fine_tuning::checkpoints))
        .routes(routes!(fine_tuning::samples))
        .routes(routes!(evaluations::create))
        .routes(routes!(evaluations::retrieve))
        .routes(routes!(evaluations::cancel));

    let admin = OpenApiRouter::new()
        .routes(routes!(evaluations::list))
        .routes(routes!(lora_adapters::lora_adapters))
        .routes(routes!(load_lora_adapter::load))
        .routes(routes!(load_lora_adapter::unload))
        .routes(routes!(personas::list::list))
        .routes(routes!(personas::list::show, personas::change::remove))
        .routes(routes!(personas::list::history))
        .routes(routes!(
            personas::list::versions,
            personas::publish::publish
        ))
        .routes(routes!(personas::change::rollback))
        .routes(routes!(
            personas::change::canary,
            personas::change::end_canary
        ))
        .routes(routes!(
            personas::change::shadow,
            personas::change::end_shadow
        ))
        .routes(routes!(
            personas::change::alias,
            personas::change::remove_alias
        ))
        // The upload counts the bytes of an archive itself.
        .routes(routes!(personas::uploads::upload).layer(DefaultBodyLimit::disable()))
        .routes(routes!(personas::uploads::forget))
        .routes(routes!(personas::maintenance::verify))
        .routes(routes!(personas::maintenance::collect_garbage));

    OpenApiRouter::with_openapi(openapi::base())
        .merge(open)
        .merge(require(Access::Metrics, metrics))
        .merge(require(Access::AnyKey, any_key))
        .merge(require(Access::Training, training))
        .merge(require(Access::Admin, admin))
}

/// Routes that need a key with a permission.
fn require(access: Access, mut group: OpenApiRouter<AppState>) -> OpenApiRouter<AppState> {
    openapi::require_key(group.get_openapi_mut());
    group.route_layer(from_fn_with_state(access, auth::authorize))
}

/// The routes and their description.
fn routes_and_document() -> (Router<AppState>, OpenApi) {
    let (router, mut document) = routes().split_for_parts();
    openapi::complete(&mut document);
    (router, document)
}

/// The routes with the layers around them.
pub(crate) fn router(state: AppState, server: &Arc<ServerState>) -> Router {
    let (router, document) = routes_and_document();
    let mut router = router
        .fallback(error::not_found)
        .method_not_allowed_fallback(error::method_not_allowed)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(Extension(Document::new(&document)));
    // Without allowed origins there are no CORS headers, and browsers block pages of other origins.
    if !server.settings.origins.is_empty() {
        router = router.layer(cors::cors(&server.settings.origins));
    }
    router
        .layer(from_fn_with_state(
            Arc::clone(server),
            request_log::request_log,
        ))
        .with_state(state)
}

/// The router of connections beyond the limit.
pub(crate) fn probe_router(why: NoRoom) -> Router {
    let busy = move || async move { ApiError::too_many_connections(why) };
    Router::new()
        .route("/health", get(health::health))
        .fallback(busy)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use axum::body::Body;
    use axum::extract::Request;
    use hyper_util::service::TowerToHyperService;

    use super::*;
    use crate::middleware::request_log::Peer;
    use crate::settings::ServerSettings;

    const OPEN: [&str; 6] = [
        "/",
        "/studio/{file}",
        "/health",
        "/ready",
        "/openapi.json",
        "/docs",
    ];

    #[test]
    fn every_operation_has_a_summary_an_error_and_the_key_that_it_needs() {
        let (_, document) = routes_and_document();
        let document = serde_json::to_value(document).unwrap();
        let mut operations = 0;
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                operations += 1;
                let place = format!("{method} {path}");
                let summary = operation["summary"].as_str();
                assert!(summary.is_some_and(|text| !text.is_empty()), "{place}");
                let error =
                    &operation["responses"]["default"]["content"]["application/json"]["schema"];
                assert_eq!(error["$ref"], "#/components/schemas/ErrorBody", "{place}");
                let open = OPEN.contains(&path.as_str());
                assert_eq!(operation.get("security").is_none(), open, "{place}");
            }
        }
        assert!(operations > 50, "{operations}");
    }

    #[test]
    fn every_schema_reference_of_the_document_exists() {
        let (_, document) = routes_and_document();
        let document = serde_json::to_value(document).unwrap();
        let text = document.to_string();
        for name in text.split("\"#/components/schemas/").skip(1) {
            let name = name.split('"').next().unwrap();
            let schema = document["components"]["schemas"].get(name);
            assert!(schema.is_some(), "{name}");
        }
    }

    /// A router of a server whose base still loads, and how a client at 10.0.0.1 sends requests to it.
    struct Client {
        server: Arc<ServerState>,
        router: TowerToHyperService<Router>,
    }

    impl Client {
        fn new() -> Client {
            let server = ServerState::new(ServerSettings::default());
            let router = router(AppState::loading(), &server);
            Client {
                router: TowerToHyperService::new(router),
                server,
            }
        }

        async fn status(&self, method: &str, path: &str, header: (&str, &str)) -> u16 {
            let request = Request::builder().method(method).uri(path);
            let request = request.header(header.0, header.1);
            let request = request.extension(Peer([10, 0, 0, 1].into()));
            let request = request.body(Body::empty()).unwrap();
            let response = hyper::service::Service::call(&self.router, request).await;
            response.unwrap().status().as_u16()
        }

        /// Repeats a request, and checks whether it is held back.
        async fn repeat(
            &self,
            count: u32,
            request: (&str, &str),
            header: (&str, &str),
            status: u16,
            held_back: bool,
        ) {
            let started = Instant::now();
            for _ in 0..count {
                let replied = self.status(request.0, request.1, header).await;
                assert_eq!(replied, status, "{request:?} {header:?}");
            }
            let took = started.elapsed();
            // A hundred at once, then one every 10 ms.
            let least = Duration::from_millis(10) * count.saturating_sub(100);
            assert_eq!(took >= least, held_back, "{request:?} {header:?}: {took:?}");
        }
    }

    #[tokio::test]
    async fn refusals_of_every_kind_are_held_back_beyond_a_burst() {
        let own = ("host", "localhost");
        let long = "x".repeat(40_000);
        for (request, header, status) in [
            (("GET", "/nowhere"), own, 404),
            (("GET", "/studio/nothing"), own, 404),
            (("PUT", "/v1/models"), own, 405),
            (("POST", "/health"), own, 405),
            (("GET", "/v1/models"), own, 503),
            (("GET", "/health"), ("host", "evil.example"), 421),
            (("POST", "/generate"), ("content-encoding", "gzip"), 415),
            (("GET", "/health"), ("x-long", &long), 431),
            (("GET", &format!("/nowhere?{long}")), own, 414),
        ] {
            let client = Client::new();
            client.repeat(120, request, header, status, true).await;
        }
    }

    #[tokio::test]
    async fn drain_neither_waits_for_refusals_nor_sends_them_as_fast_as_they_are_asked_for() {
        let own = ("host", "localhost");
        let client = Client::new();
        client.server.drain();
        client
            .repeat(120, ("GET", "/v1/models"), own, 503, true)
            .await;
        // One that is held back is not in flight.
        let held_back = client.status("GET", "/v1/models", own);
        tokio::pin!(held_back);
        assert!(futures_util::poll!(&mut held_back).is_pending());
        assert_eq!(client.server.in_flight(), 0);
        client.server.idle().await;
        assert_eq!(held_back.await, 503);
        // Probes are answered as ever.
        let probes = [("/health", 200), ("/ready", 503)];
        for (path, status) in probes {
            client.repeat(200, ("GET", path), own, status, false).await;
        }
    }
}
