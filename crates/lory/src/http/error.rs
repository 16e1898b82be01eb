//! Errors as clients see them: always `{"error":{"message","type","code","param"}}`. The one place where an error gets its
//! HTTP status.

use axum::Json;
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use registry::{LookupError, RegistryError};
use serde_json::{Value, json};

use super::MAX_BODY;
use crate::service::{AdapterError, PublishError, RequestError};

/// Seconds after which a client may try again, where nothing says how long it will take.
const RETRY_AFTER: u64 = 1;
/// The most seconds that a client is told to wait.
const MAX_RETRY_AFTER: u64 = 60;

/// An error on its way out.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
    /// The field that it is about.
    param: Option<String>,
    /// Seconds after which it is worth another try.
    retry_after: Option<u64>,
}

impl ApiError {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        let passing = matches!(
            status,
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
        );
        ApiError {
            status,
            code,
            message: message.into(),
            param: None,
            retry_after: passing.then_some(RETRY_AFTER),
        }
    }

    /// A request that cannot be answered as it is.
    pub fn bad_request(
        code: &'static str,
        message: impl Into<String>,
        param: Option<String>,
    ) -> Self {
        ApiError {
            param,
            ..ApiError::new(StatusCode::BAD_REQUEST, code, message)
        }
    }

    /// What a field names is not there.
    pub fn missing(code: &'static str, message: impl Into<String>, field: &str) -> Self {
        ApiError {
            param: Some(field.to_owned()),
            ..ApiError::new(StatusCode::NOT_FOUND, code, message)
        }
    }

    /// With the field that it is about: the one that names a persona, or the one that names an adapter.
    pub fn about(mut self, persona: &str, adapter: &str) -> Self {
        self.param = match self.code {
            "adapter_path_refused" | "adapter_not_found" | "adapter_unusable" => {
                Some(adapter.to_owned())
            }
            "adapter_of_another_base" => Some(adapter.to_owned()),
            "persona_not_found" | "persona_refused" | "persona_exists" => Some(persona.to_owned()),
            _ => self.param,
        };
        self
    }

    /// A field with a value that is not supported.
    pub fn unsupported(field: &str, message: impl Into<String>) -> Self {
        ApiError::bad_request("unsupported_value", message, Some(field.to_owned()))
    }

    pub fn too_large() -> Self {
        ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "request_too_large",
            format!("the body is larger than {MAX_BODY} bytes"),
        )
    }

    pub fn media_type(found: &str) -> Self {
        ApiError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            format!(
                "the body must be JSON; send the header Content-Type: application/json, not {found}"
            ),
        )
    }

    pub fn loading() -> Self {
        ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "loading",
            "the base is loading; /ready tells when it is there".to_owned(),
        )
    }

    pub fn internal(message: impl Into<String>) -> Self {
        ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal_error",
            message.into(),
        )
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
        if let Some(seconds) = self.retry_after {
            let value = HeaderValue::from(seconds);
            response.headers_mut().insert(header::RETRY_AFTER, value);
        }
        response
    }
}

impl From<RequestError> for ApiError {
    fn from(error: RequestError) -> ApiError {
        let (status, code) = match &error {
            RequestError::Persona { source, .. } => match source {
                LookupError::Spec(_) | LookupError::VersionOfAlias { .. } => {
                    (StatusCode::BAD_REQUEST, "invalid_persona")
                }
                LookupError::Unknown { .. } | LookupError::NoVersion { .. } => {
                    (StatusCode::NOT_FOUND, "persona_not_found")
                }
            },
            RequestError::NoPersona { .. } => (StatusCode::BAD_REQUEST, "invalid_persona"),
            RequestError::Schema { .. } => (StatusCode::BAD_REQUEST, "invalid_schema"),
            RequestError::EmptyPrompt { .. } => (StatusCode::BAD_REQUEST, "empty_prompt"),
            RequestError::PromptTooLong { .. } | RequestError::PastContext { .. } => {
                (StatusCode::BAD_REQUEST, "context_length_exceeded")
            }
            RequestError::UnknownRole { .. }
            | RequestError::Tool { .. }
            | RequestError::Template { .. }
            | RequestError::Tokenize { .. }
            | RequestError::OutOfRange { .. }
            | RequestError::TooManyStops { .. }
            | RequestError::StopLength { .. }
            | RequestError::Refused(_) => (StatusCode::BAD_REQUEST, "invalid_value"),
            RequestError::QueueFull { .. } => (StatusCode::TOO_MANY_REQUESTS, "queue_full"),
            RequestError::Adapter { source, .. } => match &**source {
                AdapterError::OtherBase { .. } | AdapterError::OtherFile { .. } => {
                    (StatusCode::CONFLICT, "adapter_of_another_base")
                }
                AdapterError::Pool(_) => {
                    (StatusCode::INSUFFICIENT_STORAGE, "adapter_memory_too_small")
                }
                _ => (StatusCode::INTERNAL_SERVER_ERROR, "adapter_unusable"),
            },
            RequestError::GrammarsBusy => (StatusCode::SERVICE_UNAVAILABLE, "grammars_busy"),
            RequestError::Timeout => (StatusCode::GATEWAY_TIMEOUT, "timeout"),
            // Nobody reads it.
            RequestError::GivenUp => (StatusCode::REQUEST_TIMEOUT, "client_gone"),
            RequestError::Failed(_) => (StatusCode::INTERNAL_SERVER_ERROR, "model_failed"),
            RequestError::Stopped => (StatusCode::SERVICE_UNAVAILABLE, "shutting_down"),
        };
        let api = ApiError::new(status, code, error.to_string());
        let retry_after = match &error {
            RequestError::QueueFull { retry_after, .. } => {
                let seconds = retry_after.as_secs_f64().ceil() as u64;
                Some(seconds.clamp(RETRY_AFTER, MAX_RETRY_AFTER))
            }
            _ => api.retry_after,
        };
        ApiError {
            param: error.field(),
            retry_after,
            ..api
        }
    }
}

impl From<PublishError> for ApiError {
    fn from(error: PublishError) -> ApiError {
        let (status, code) = match &error {
            PublishError::NoRegistry => (StatusCode::CONFLICT, "no_registry"),
            PublishError::NameOfBase { .. } => (StatusCode::CONFLICT, "persona_refused"),
            PublishError::InFolder { .. } => (StatusCode::CONFLICT, "persona_refused"),
            PublishError::NoAdapterRoot | PublishError::OutsideRoot { .. } => {
                (StatusCode::FORBIDDEN, "adapter_path_refused")
            }
            PublishError::NoSuchFolder { .. } => (StatusCode::NOT_FOUND, "adapter_not_found"),
            PublishError::Adapter(error) => match **error {
                AdapterError::OtherBase { .. } | AdapterError::OtherFile { .. } => {
                    (StatusCode::BAD_REQUEST, "adapter_of_another_base")
                }
                _ => (StatusCode::BAD_REQUEST, "adapter_unusable"),
            },
            PublishError::Registry(error) => match error {
                RegistryError::Unknown { .. } | RegistryError::NoVersion { .. } => {
                    (StatusCode::NOT_FOUND, "persona_not_found")
                }
                RegistryError::Refused { .. } => (StatusCode::BAD_REQUEST, "persona_refused"),
                RegistryError::Exists { .. } => (StatusCode::CONFLICT, "persona_exists"),
                RegistryError::Adapter(_) | RegistryError::TooLarge { .. } => {
                    (StatusCode::BAD_REQUEST, "adapter_unusable")
                }
                RegistryError::Contended => (StatusCode::SERVICE_UNAVAILABLE, "registry_busy"),
                RegistryError::Location { .. }
                | RegistryError::Store { .. }
                | RegistryError::Folder { .. }
                | RegistryError::Entry { .. }
                | RegistryError::Corrupt { .. }
                | RegistryError::Missing { .. } => {
                    (StatusCode::INTERNAL_SERVER_ERROR, "registry_failed")
                }
            },
        };
        ApiError::new(status, code, error.to_string())
    }
}

/// No such route.
pub(super) async fn not_found(method: Method, uri: Uri) -> ApiError {
    ApiError::new(
        StatusCode::NOT_FOUND,
        "not_found",
        format!("there is nothing at {method} {}", uri.path()),
    )
}

/// A route that takes other methods.
pub(super) async fn method_not_allowed(method: Method, uri: Uri) -> ApiError {
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        format!(
            "{} does not take {method}; the header Allow says what it takes",
            uri.path()
        ),
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_full_queue_is_worth_another_try_when_half_of_it_has_gone() {
        for (after, seconds) in [(0.0, "1"), (0.2, "1"), (3.2, "4"), (1e9, "60")] {
            let error = RequestError::QueueFull {
                limit: 7,
                retry_after: Duration::from_secs_f64(after),
            };
            let response = ApiError::from(error).into_response();
            assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
            assert_eq!(response.headers()[header::RETRY_AFTER], seconds, "{after}");
        }
    }

    #[test]
    fn what_will_not_pass_has_no_time_to_come_back() {
        let response = ApiError::from(RequestError::Timeout).into_response();
        assert_eq!(response.status(), StatusCode::GATEWAY_TIMEOUT);
        assert!(response.headers().get(header::RETRY_AFTER).is_none());
    }
}
