//! `POST /v1/embeddings`: refused by name, so that a client that tries it learns why.

use super::error::ApiError;

pub(super) async fn embeddings() -> ApiError {
    ApiError::bad_request(
        "unsupported_endpoint",
        "embeddings are not supported: the models here write text; ask a server of an embedding model",
        None,
    )
}
