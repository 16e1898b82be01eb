//! Why a job or an evaluation failed.

use serde::{Deserialize, Serialize};

use super::client_message::ClientMessage;

/// Why a job or an evaluation failed, in OpenAI's shape.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Failure {
    /// The error code.
    pub code: String,
    /// What is wrong and what to do.
    #[schema(value_type = String)]
    pub message: ClientMessage,
    /// The request field that it is about, if any.
    #[schema(required)]
    pub param: Option<String>,
}
