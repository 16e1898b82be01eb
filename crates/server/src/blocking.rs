//! Blocking work off the async threads.

use crate::error::ApiError;

/// Runs work that waits for the disk or a bucket on a thread for blocking work.
pub(crate) async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    let joined = tokio::task::spawn_blocking(work).await;
    joined.map_err(|_| ApiError::internal("the work failed unexpectedly; see the server's log"))
}
