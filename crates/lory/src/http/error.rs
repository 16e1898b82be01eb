//! Errors as clients see them: always `{"error":{"message","type","code","param"}}`. The one place where an error gets its
//! HTTP status.

use axum::Json;
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use registry::LookupError;
use serde_json::{Value, json};

use super::MAX_BODY;
use crate::service::{AdapterError, RequestError};

/// Seconds after which a client may try again when the queue was full or the base is loading.
const RETRY_AFTER: &str = "1";

/// An error on its way out.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
    /// The field that it is about.
    param: Option<String>,
}

impl ApiError {
    /// A request that cannot be answered as it is.
    pub fn bad_request(
        code: &'static str,
        message: impl Into<String>,
        param: Option<String>,
    ) -> Self {
        ApiError {
            status: StatusCode::BAD_REQUEST,
            code,
            message: message.into(),
            param,
        }
    }

    /// A field with a value that is not supported.
    pub fn unsupported(field: &str, message: impl Into<String>) -> Self {
        ApiError::bad_request("unsupported_value", message, Some(field.to_owned()))
    }

    pub fn too_large() -> Self {
        ApiError {
            status: StatusCode::PAYLOAD_TOO_LARGE,
            code: "request_too_large",
            message: format!("the body is larger than {MAX_BODY} bytes"),
            param: None,
        }
    }

    pub fn media_type(found: &str) -> Self {
        ApiError {
            status: StatusCode::UNSUPPORTED_MEDIA_TYPE,
            code: "unsupported_media_type",
            message: format!(
                "the body must be JSON; send the header Content-Type: application/json, not {found}"
            ),
            param: None,
        }
    }

    pub fn loading() -> Self {
        ApiError {
            status: StatusCode::SERVICE_UNAVAILABLE,
            code: "loading",
            message: "the base is loading; /ready tells when it is there".to_owned(),
            param: None,
        }
    }

    pub fn internal(message: impl Into<String>) -> Self {
        ApiError {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            code: "internal_error",
            message: message.into(),
            param: None,
        }
    }

    /// The body.
    pub fn json(&self) -> Value {
        let kind = match self.status {
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        json!({"error": {
            "message": self.message,
            "type": kind,
            "code": self.code,
            "param": self.param,
        }})
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.json())).into_response();
        if matches!(
            self.status,
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
        ) {
            let value = HeaderValue::from_static(RETRY_AFTER);
            response.headers_mut().insert(header::RETRY_AFTER, value);
        }
        response
    }
}

impl From<RequestError> for ApiError {
    fn from(error: RequestError) -> ApiError {
        let (status, code) = match &error {
            RequestError::Persona { source, .. } => match source {
                LookupError::Spec(_) => (StatusCode::BAD_REQUEST, "invalid_persona"),
                LookupError::Unknown { .. } | LookupError::NoVersion { .. } => {
                    (StatusCode::NOT_FOUND, "persona_not_found")
                }
            },
            RequestError::NoPersona { .. } => (StatusCode::BAD_REQUEST, "invalid_persona"),
            RequestError::EmptyPrompt { .. } => (StatusCode::BAD_REQUEST, "empty_prompt"),
            RequestError::PromptTooLong { .. } | RequestError::PastContext { .. } => {
                (StatusCode::BAD_REQUEST, "context_length_exceeded")
            }
            RequestError::UnknownRole { .. }
            | RequestError::Template { .. }
            | RequestError::Tokenize { .. }
            | RequestError::OutOfRange { .. }
            | RequestError::TooManyStops { .. }
            | RequestError::StopLength { .. }
            | RequestError::Refused(_) => (StatusCode::BAD_REQUEST, "invalid_value"),
            RequestError::QueueFull { .. } => (StatusCode::TOO_MANY_REQUESTS, "queue_full"),
            RequestError::Adapter { source, .. } => match &**source {
                AdapterError::Pool(_) => (StatusCode::TOO_MANY_REQUESTS, "adapter_memory_full"),
                _ => (StatusCode::INTERNAL_SERVER_ERROR, "adapter_unusable"),
            },
            RequestError::Failed(_) => (StatusCode::INTERNAL_SERVER_ERROR, "model_failed"),
            RequestError::Stopped => (StatusCode::SERVICE_UNAVAILABLE, "shutting_down"),
        };
        ApiError {
            status,
            code,
            message: error.to_string(),
            param: error.field(),
        }
    }
}

/// No such route.
pub(super) async fn not_found(method: Method, uri: Uri) -> ApiError {
    ApiError {
        status: StatusCode::NOT_FOUND,
        code: "not_found",
        message: format!("there is nothing at {method} {}", uri.path()),
        param: None,
    }
}

/// A route that takes other methods.
pub(super) async fn method_not_allowed(method: Method, uri: Uri) -> ApiError {
    ApiError {
        status: StatusCode::METHOD_NOT_ALLOWED,
        code: "method_not_allowed",
        message: format!(
            "{} does not take {method}; the header Allow says what it takes",
            uri.path()
        ),
        param: None,
    }
}
