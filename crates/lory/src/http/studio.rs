//! `GET /` and what it is made of: see [`crate::web`].

use axum::extract::Path;
use axum::http::{HeaderMap, Method, Uri};
use axum::response::{IntoResponse, Response};

use super::error;
use crate::web;

/// The studio, a page for people
#[utoipa::path(
    get,
    path = "/",
    responses(
        (status = 200, description = "The page", body = String, content_type = "text/html"),
        (status = 304, description = "The browser has it already"),
    )
)]
pub(super) async fn page(headers: HeaderMap) -> Response {
    web::page(&headers)
}

/// A file of the studio
#[utoipa::path(
    get,
    path = "/studio/{file}",
    params(("file" = String, Path, description = "Its name")),
    responses(
        (status = 200, description = "The file", content(
            (String = "text/javascript"),
            (String = "text/css"),
            (String = "image/svg+xml"),
            (String = "text/html"),
        )),
        (status = 304, description = "The browser has it already"),
    )
)]
pub(super) async fn file(
    Path(name): Path<String>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    match web::file(&name, &headers) {
        Some(file) => file,
        None => error::not_found(method, uri).await.into_response(),
    }
}
