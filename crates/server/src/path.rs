//! Parameters in a request's path.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use serde::de::DeserializeOwned;

use crate::error::ApiError;

/// The longest path of a route with parameters, in bytes as it is sent.
const MAX_PATH: usize = 2048;

/// The parameters of a path. Unlike axum's own, it reports errors in the shape of all errors.
pub(super) struct Path<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Path<T>, ApiError> {
        let bytes = parts.uri.path().len();
        if bytes > MAX_PATH {
            let message = format!("the path has {bytes} bytes; at most {MAX_PATH} are allowed");
            return Err(ApiError::bad_request("invalid_path", message, None));
        }
        let read = axum::extract::Path::<T>::from_request_parts(parts, state).await;
        let read = read.map_err(|rejection| {
            let message = format!("the path cannot be read: {}", rejection.body_text());
            ApiError::bad_request("invalid_path", message, None)
        })?;
        Ok(Path(read.0))
    }
}
