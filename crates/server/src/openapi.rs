//! `GET /openapi.json`: the description of every route, generated from its handler and its types. `GET /docs`: a page that shows it.
//! Which routes exist is up to `routes`.

use axum::Extension;
use axum::body::Bytes;
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use utoipa::OpenApi as _;
use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{ContentBuilder, OpenApi, Ref, ResponseBuilder};

use crate::error::ErrorBody;
use crate::with_sampling;

/// The name of the security scheme.
const KEY: &str = "key";
/// The page requests the document from this server and nothing else.
const PAGE: &str = include_str!("docs.html");
/// Enforces that.
const PAGE_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'";

/// The document as it is sent.
#[derive(Clone)]
pub(crate) struct Document(Bytes);

impl Document {
    pub fn new(document: &OpenApi) -> Document {
        Document(serde_json::to_string(document).unwrap_or_default().into())
    }
}

/// The document without routes.
pub(crate) fn base() -> OpenApi {
    #[derive(utoipa::OpenApi)]
    #[openapi(
        info(
            title = "Lory",
            description = "Many tones of voice from one language model. Fields that are not described here are refused by name."
        ),
        components(schemas(ErrorBody))
    )]
    struct Base;
    Base::openapi()
}

/// Marks every operation as one that needs a key.
pub(crate) fn require_key(document: &mut OpenApi) {
    for operation in operations(document) {
        let key = SecurityRequirement::new::<_, [&str; 0], &str>(KEY, []);
        operation.security = Some(vec![key]);
    }
}

/// Adds the sampling parameters, and what all routes share: the error response, tags and the security scheme.
pub(crate) fn complete(document: &mut OpenApi) {
    with_sampling::describe(document);
    let error = ResponseBuilder::new()
        .description("Every error has this shape")
        .content(
            "application/json",
            ContentBuilder::new()
                .schema(Some(Ref::from_schema_name("ErrorBody")))
                .build(),
        )
        .build();
    for operation in operations(document) {
        let responses = &mut operation.responses.responses;
        responses.insert("default".to_owned(), error.clone().into());
    }
    for (path, item) in &mut document.paths.paths {
        let tag = tag(path);
        for operation in item_operations(item) {
            operation.tags = Some(vec![tag.to_owned()]);
        }
    }
    let mut bearer = Http::new(HttpAuthScheme::Bearer);
    bearer.description = Some("An API key. A server without keys needs none.".to_owned());
    let components = document.components.get_or_insert_default();
    components.add_security_scheme(KEY, SecurityScheme::Http(bearer));
}

fn operations(document: &mut OpenApi) -> impl Iterator<Item = &mut Operation> {
    let items = document.paths.paths.values_mut();
    items.flat_map(item_operations)
}

fn item_operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    let operations = [
        &mut item.get,
        &mut item.post,
        &mut item.put,
        &mut item.patch,
        &mut item.delete,
    ];
    operations.into_iter().flatten()
}

/// The group of an operation: the resource in its path.
fn tag(path: &str) -> &str {
    let path = path.strip_prefix("/v1").unwrap_or(path);
    let resource = path.split('/').nth(1).unwrap_or_default();
    if resource.is_empty() {
        "studio"
    } else {
        resource
    }
}

/// This document
#[utoipa::path(
    get,
    path = "/openapi.json",
    responses((status = 200, description = "An OpenAPI document", body = serde_json::Value))
)]
pub(crate) async fn document(Extension(Document(text)): Extension<Document>) -> Response {
    ([(CONTENT_TYPE, "application/json")], text).into_response()
}

/// A page that shows this document
#[utoipa::path(
    get,
    path = "/docs",
    responses((status = 200, description = "A page", body = String, content_type = "text/html"))
)]
pub(crate) async fn docs() -> Response {
    let headers = [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (CONTENT_SECURITY_POLICY, PAGE_POLICY),
        (CACHE_CONTROL, "no-cache"),
    ];
    (headers, PAGE).into_response()
}
