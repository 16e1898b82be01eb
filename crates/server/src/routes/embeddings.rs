//! `POST /v1/embeddings`: not supported; the error explains why.

use crate::error::{ApiError, ErrorBody};

/// Not supported
#[utoipa::path(
    post,
    path = "/v1/embeddings",
    responses((status = 400, description = "The models of this server generate text", body = ErrorBody))
)]
pub(super) async fn embeddings() -> ApiError {
    ApiError::bad_request(
        "unsupported_endpoint",
        "embeddings are not supported: the models here write text; ask a server of an embedding model",
        None,
    )
}
