//! Errors as clients see them: always `{"error":{"message","type","code","param"}}`. The one place where an error gets its
//! HTTP status.

use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use registry::{LookupError, RegistryError, VariableError};
use serde_json::{Value, json};

use crate::{MAX_BODY, MAX_HEADERS};
use auth::Denied;
use jobs::JobError;
use jobs::ResultError;
use service::uploads::UploadError;
use service::{AdapterError, PublishError, RequestError, VoteError};

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

    pub fn not_zip(found: &str) -> Self {
        ApiError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            format!(
                "the body must be a zip archive; send the header Content-Type: application/zip, not {found}"
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

    /// The server is stopping, in at most `within`.
    pub fn draining(within: Duration) -> Self {
        ApiError {
            retry_after: Some(whole_seconds(within)),
            ..ApiError::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "shutting_down",
                "the server is stopping and takes no new requests; ask another one, or this one when it is back",
            )
        }
    }

    pub fn headers_too_large() -> Self {
        ApiError::new(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "headers_too_large",
            format!("the headers are larger than {MAX_HEADERS} bytes"),
        )
    }

    pub fn slow_headers(limit: Duration) -> Self {
        ApiError::new(
            StatusCode::REQUEST_TIMEOUT,
            "headers_too_slow",
            format!("the headers took longer than {limit:?} to come"),
        )
    }

    pub fn slow_body(limit: Duration) -> Self {
        ApiError::new(
            StatusCode::REQUEST_TIMEOUT,
            "body_too_slow",
            format!("the body took longer than {limit:?} to come"),
        )
    }

    pub fn too_many_connections(limit: usize) -> Self {
        ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "too_many_connections",
            format!("{limit} connections are open already, as many as may be"),
        )
    }

    /// A web page from elsewhere.
    pub fn origin() -> Self {
        ApiError::new(
            StatusCode::FORBIDDEN,
            "origin_not_allowed",
            "a web page of another origin asked; name the origin with --cors-origin if it may",
        )
    }

    /// The whole response in bytes, for a connection on which nothing speaks HTTP any more.
    pub fn raw(&self) -> Vec<u8> {
        let body = self.json().to_string();
        let reason = self.status.canonical_reason().unwrap_or_default();
        let retry = match self.retry_after {
            Some(seconds) => format!("retry-after: {seconds}\r\n"),
            None => String::new(),
        };
        let head = format!(
            "HTTP/1.1 {} {reason}\r\ncontent-type: application/json\r\n{retry}connection: close\r\ncontent-length: {}\r\n\r\n",
            self.status.as_u16(),
            body.len()
        );
        [head, body].concat().into_bytes()
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
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::FORBIDDEN => "permission_error",
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
        if self.status == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer");
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, scheme);
        }
        response
    }
}

/// What `Retry-After` says of a time.
fn whole_seconds(time: Duration) -> u64 {
    let seconds = time.as_secs_f64().ceil() as u64;
    seconds.clamp(RETRY_AFTER, MAX_RETRY_AFTER)
}

fn of_denied(denied: &Denied) -> (StatusCode, &'static str) {
    match denied {
        Denied::NoKey => (StatusCode::UNAUTHORIZED, "missing_api_key"),
        Denied::UnknownKey => (StatusCode::UNAUTHORIZED, "invalid_api_key"),
        Denied::NotAdmin { .. } => (StatusCode::FORBIDDEN, "admin_only"),
        Denied::NoTraining { .. } => (StatusCode::FORBIDDEN, "training_not_allowed"),
        Denied::Persona { .. } => (StatusCode::FORBIDDEN, "persona_not_allowed"),
        Denied::Priority { .. } => (StatusCode::FORBIDDEN, "priority_not_allowed"),
        Denied::Requests { .. } => (StatusCode::TOO_MANY_REQUESTS, "request_rate_exceeded"),
        Denied::Tokens { .. } => (StatusCode::TOO_MANY_REQUESTS, "token_rate_exceeded"),
    }
}

/// A bucket is measured, so what it says is not cut as a guess is: who took more than a minute's worth waits for it.
fn after_denied(denied: &Denied) -> Option<u64> {
    let time = denied.retry_after()?;
    Some((time.as_secs_f64().ceil() as u64).max(RETRY_AFTER))
}

impl From<Denied> for ApiError {
    fn from(denied: Denied) -> ApiError {
        let (status, code) = of_denied(&denied);
        ApiError {
            retry_after: after_denied(&denied),
            ..ApiError::new(status, code, denied.to_string())
        }
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
            RequestError::Variable(error) => match error {
                VariableError::Unknown { .. } => (StatusCode::BAD_REQUEST, "unknown_variable"),
                VariableError::Missing { .. } => (StatusCode::BAD_REQUEST, "missing_variable"),
                VariableError::TooLong { .. } => (StatusCode::BAD_REQUEST, "invalid_value"),
            },
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
            RequestError::ClientGone => (StatusCode::REQUEST_TIMEOUT, "client_gone"),
            RequestError::Failed(_) => (StatusCode::INTERNAL_SERVER_ERROR, "model_failed"),
            RequestError::Denied { source, .. } => of_denied(source),
            RequestError::Stopped => (StatusCode::SERVICE_UNAVAILABLE, "shutting_down"),
        };
        let api = ApiError::new(status, code, error.to_string());
        let retry_after = match &error {
            RequestError::QueueFull { retry_after, .. } => Some(whole_seconds(*retry_after)),
            RequestError::Denied { source, .. } => after_denied(source),
            _ => api.retry_after,
        };
        ApiError {
            param: error.field(),
            retry_after,
            ..api
        }
    }
}

impl From<VoteError> for ApiError {
    fn from(error: VoteError) -> ApiError {
        let (status, code) = match &error {
            VoteError::Off => (StatusCode::CONFLICT, "judgements_off"),
            VoteError::Full { .. } => (StatusCode::INSUFFICIENT_STORAGE, "votes_full"),
            VoteError::Broken { .. } | VoteError::Io { .. } => {
                (StatusCode::INTERNAL_SERVER_ERROR, "judgements_failed")
            }
        };
        ApiError::new(status, code, error.to_string())
    }
}

impl From<ResultError> for ApiError {
    fn from(error: ResultError) -> ApiError {
        let (status, code) = of_result(&error);
        ApiError::new(status, code, error.to_string())
    }
}

fn of_result(error: &ResultError) -> (StatusCode, &'static str) {
    match error {
        ResultError::Off => (StatusCode::CONFLICT, "judgements_off"),
        ResultError::Unknown(_) => (StatusCode::NOT_FOUND, "evaluation_not_found"),
        ResultError::Broken { .. } | ResultError::Io { .. } => {
            (StatusCode::INTERNAL_SERVER_ERROR, "judgements_failed")
        }
    }
}

impl From<PublishError> for ApiError {
    fn from(error: PublishError) -> ApiError {
        let (status, code) = of_publish(&error);
        ApiError::new(status, code, error.to_string())
    }
}

fn of_publish(error: &PublishError) -> (StatusCode, &'static str) {
    match error {
        PublishError::NoRegistry => (StatusCode::CONFLICT, "no_registry"),
        PublishError::NameOfBase { .. } => (StatusCode::CONFLICT, "persona_refused"),
        PublishError::InFolder { .. } => (StatusCode::CONFLICT, "persona_refused"),
        PublishError::NoAdapterRoot | PublishError::OutsideRoot { .. } => {
            (StatusCode::FORBIDDEN, "adapter_path_refused")
        }
        PublishError::NoSuchFolder { .. } => (StatusCode::NOT_FOUND, "adapter_not_found"),
        PublishError::NotInFolder { .. } => (StatusCode::NOT_FOUND, "persona_not_found"),
        PublishError::Upload(error) => match error {
            UploadError::Off => (StatusCode::CONFLICT, "uploads_off"),
            UploadError::Archive(_) | UploadError::Entry { .. } | UploadError::Missing { .. } => {
                (StatusCode::BAD_REQUEST, "archive_refused")
            }
            UploadError::Adapter(_) => (StatusCode::BAD_REQUEST, "adapter_unusable"),
            UploadError::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "request_too_large"),
            UploadError::Unknown { .. } => (StatusCode::NOT_FOUND, "upload_not_found"),
            UploadError::Io { .. } => (StatusCode::INTERNAL_SERVER_ERROR, "uploads_failed"),
        },
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
            | RegistryError::LogEntry { .. }
            | RegistryError::Corrupt { .. }
            | RegistryError::Missing { .. } => {
                (StatusCode::INTERNAL_SERVER_ERROR, "registry_failed")
            }
        },
    }
}

impl From<JobError> for ApiError {
    fn from(error: JobError) -> ApiError {
        let (status, code) = match &error {
            JobError::NoFile { .. } => (StatusCode::NOT_FOUND, "file_not_found"),
            JobError::NoJob { .. } => (StatusCode::NOT_FOUND, "job_not_found"),
            JobError::NoPage { .. } => (StatusCode::BAD_REQUEST, "invalid_page"),
            JobError::Invalid { .. } => (StatusCode::BAD_REQUEST, "invalid_value"),
            JobError::Rows(_) => (StatusCode::BAD_REQUEST, "invalid_file"),
            JobError::Plan(_) => (StatusCode::BAD_REQUEST, "invalid_job"),
            JobError::FileTooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "file_too_large"),
            JobError::TooManyFiles { .. } | JobError::NoRoom { .. } => {
                (StatusCode::INSUFFICIENT_STORAGE, "too_many_files")
            }
            JobError::FileInUse { .. } => (StatusCode::CONFLICT, "file_in_use"),
            JobError::QueueFull { .. } | JobError::EvaluationsFull { .. } => {
                (StatusCode::TOO_MANY_REQUESTS, "queue_full")
            }
            JobError::EvaluationOver { .. } => (StatusCode::CONFLICT, "evaluation_state"),
            JobError::Results(error) => of_result(error),
            JobError::State { .. } | JobError::Publishing { .. } => {
                (StatusCode::CONFLICT, "job_state")
            }
            JobError::NoJobs { .. } => (StatusCode::CONFLICT, "no_jobs"),
            JobError::Denied(denied) => of_denied(denied),
            JobError::Publish(error) => of_publish(error),
            JobError::Io { .. } | JobError::Damaged { .. } | JobError::Random(_) => {
                (StatusCode::INTERNAL_SERVER_ERROR, "jobs_failed")
            }
        };
        ApiError {
            param: error.field().map(str::to_owned),
            ..ApiError::new(status, code, error.to_string())
        }
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
