//! Cross-origin requests, for web pages of the origins that the server allows.

use axum::http::{HeaderName, Method, header};
use tower_http::cors::CorsLayer;

use crate::origin::Origin;

/// Allows requests from pages of these origins.
pub(crate) fn cors(origins: &[Origin]) -> CorsLayer {
    let request_id = HeaderName::from_static("x-request-id");
    CorsLayer::new()
        .allow_origin(
            origins
                .iter()
                .map(|origin| origin.header().clone())
                .collect::<Vec<_>>(),
        )
        .allow_methods([Method::GET, Method::POST, Method::PUT, Method::DELETE])
        .allow_headers([
            header::AUTHORIZATION,
            header::CONTENT_TYPE,
            request_id.clone(),
        ])
        .expose_headers([header::RETRY_AFTER, request_id])
}
