//! Cross-origin requests, for web pages, browser extensions and desktop apps of the origins that the server allows.

use axum::http::{HeaderName, HeaderValue, Method, header};
use tower_http::cors::{AllowHeaders, AllowOrigin, AllowPrivateNetwork, CorsLayer};

use crate::origin::Origin;

/// Allows requests from pages of these origins, with any headers: clients add their own, such as `x-stainless-lang`.
pub(crate) fn cors(origins: &[Origin]) -> CorsLayer {
    let allowed = origins.to_vec();
    let allow_origin = if allowed.contains(&Origin::Any) {
        AllowOrigin::any()
    } else {
        AllowOrigin::predicate(move |origin: &HeaderValue, _: &_| {
            allowed.iter().any(|one| one.allows(origin))
        })
    };
    CorsLayer::new()
        .allow_origin(allow_origin)
        .allow_methods([Method::GET, Method::POST, Method::PUT, Method::DELETE])
        .allow_headers(AllowHeaders::mirror_request())
        // Chromium asks for this before a page from the internet may reach a server in the local network.
        .allow_private_network(AllowPrivateNetwork::yes())
        .expose_headers([header::RETRY_AFTER, HeaderName::from_static("x-request-id")])
}
