//! The routes of the studio: its page and its files.

use axum::http::{HeaderMap, Method, Uri};
use axum::response::{IntoResponse, Response};

use super::{file as studio_file, page as studio_page};
use crate::error;
use crate::path::Path;

/// The studio, a web page
#[utoipa::path(
    get,
    path = "/",
    responses(
        (status = 200, description = "The page", body = String, content_type = "text/html"),
        (status = 304, description = "Not modified: the browser's copy is current"),
    )
)]
pub(crate) async fn page(headers: HeaderMap) -> Response {
    studio_page(&headers)
}

/// A file of the studio's page
#[utoipa::path(
    get,
    path = "/studio/{file}",
    params(("file" = String, Path, description = "The file's name")),
    responses(
        (status = 200, description = "The file", content(
            (String = "text/javascript"),
            (String = "text/css"),
            (String = "image/svg+xml"),
            (String = "text/html"),
        )),
        (status = 304, description = "Not modified: the browser's copy is current"),
    )
)]
pub(crate) async fn file(
    Path(name): Path<String>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    match studio_file(&name, &headers) {
        Some(file) => file,
        None => error::not_found(method, uri).await.into_response(),
    }
}
