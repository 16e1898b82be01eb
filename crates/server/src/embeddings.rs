//! `POST /v1/embeddings`: refused by name, so that a client that tries it learns why.

use crate::answers::ErrorBody;
use crate::error::ApiError;

/// Not supported, and says so
#[utoipa::path(
    post,
    path = "/v1/embeddings",
    responses((status = 400, description = "The models here write text", body = ErrorBody))
)]
pub(super) async fn embeddings() -> ApiError {
    ApiError::bad_request(
        "unsupported_endpoint",
        "embeddings are not supported: the models here write text; ask a server of an embedding model",
        None,
    )
}
