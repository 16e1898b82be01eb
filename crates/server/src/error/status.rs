//! HTTP statuses and codes for the errors of the other crates.

use std::error::Error;
use std::io::{self, ErrorKind};

use auth::{AuthError, QuotaExceeded, Resource};
use axum::http::StatusCode;
use jobs::{JobError, ResultError};
use registry::{LookupError, RegistryError, VariableError};
use service::uploads::UploadError;
use service::{AdapterError, PublishError, RequestError, VoteError};

use super::{ApiError, RETRY_AFTER, whole_seconds};

fn denied_status(denied: &AuthError) -> (StatusCode, &'static str) {
    match denied {
        AuthError::MissingKey => (StatusCode::UNAUTHORIZED, "missing_api_key"),
        AuthError::InvalidKey => (StatusCode::UNAUTHORIZED, "invalid_api_key"),
        AuthError::AdminOnly { .. } => (StatusCode::FORBIDDEN, "admin_only"),
        AuthError::TrainingNotAllowed { .. } => (StatusCode::FORBIDDEN, "training_not_allowed"),
        AuthError::PersonaNotAllowed { .. } | AuthError::ScaleNotAllowed { .. } => {
            (StatusCode::FORBIDDEN, "persona_not_allowed")
        }
        AuthError::PriorityNotAllowed { .. } => (StatusCode::FORBIDDEN, "priority_not_allowed"),
        AuthError::RequestRateExceeded { .. } | AuthError::AnswerRateExceeded { .. } => {
            (StatusCode::TOO_MANY_REQUESTS, "request_rate_exceeded")
        }
        AuthError::TokenRateExceeded { .. } => {
            (StatusCode::TOO_MANY_REQUESTS, "token_rate_exceeded")
        }
        AuthError::AnswersAboveTokenLimit { .. } => {
            (StatusCode::BAD_REQUEST, "token_rate_exceeded")
        }
    }
}

/// Rate-limit delays are exact, so they are not clamped: they can be longer than a minute.
fn retry_after_denied(denied: &AuthError) -> Option<u64> {
    let time = denied.retry_after()?;
    Some((time.as_secs_f64().ceil() as u64).max(RETRY_AFTER))
}

impl From<AuthError> for ApiError {
    fn from(denied: AuthError) -> ApiError {
        let (status, code) = denied_status(&denied);
        ApiError {
            retry_after: retry_after_denied(&denied),
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
            RequestError::UnknownModel { .. } => (StatusCode::NOT_FOUND, "model_not_found"),
            RequestError::NoPersona { .. } => (StatusCode::BAD_REQUEST, "invalid_persona"),
            RequestError::Schema { .. } | RequestError::GrammarLimit(_) => {
                (StatusCode::BAD_REQUEST, "invalid_schema")
            }
            RequestError::Variable(error) => match error {
                VariableError::Unknown { .. } => (StatusCode::BAD_REQUEST, "unknown_variable"),
                VariableError::Missing { .. } => (StatusCode::BAD_REQUEST, "missing_variable"),
                VariableError::TooLong { .. } => (StatusCode::BAD_REQUEST, "invalid_value"),
            },
            RequestError::EmptyPrompt { .. } => (StatusCode::BAD_REQUEST, "empty_prompt"),
            RequestError::PromptTooLong { .. }
            | RequestError::ConversationTooLong { .. }
            | RequestError::PromptTooLarge { .. }
            | RequestError::PastContext { .. } => {
                (StatusCode::BAD_REQUEST, "context_length_exceeded")
            }
            RequestError::UnknownRole { .. }
            | RequestError::Tool { .. }
            | RequestError::Template { .. }
            | RequestError::NoSystemRole { field: Some(_), .. }
            | RequestError::Tokenize { .. }
            | RequestError::OutOfRange { .. }
            | RequestError::TooManyStops { .. }
            | RequestError::StopLength { .. }
            | RequestError::TooManyAnswers { .. }
            | RequestError::Refused(_) => (StatusCode::BAD_REQUEST, "invalid_value"),
            RequestError::QueueFull { .. } => (StatusCode::TOO_MANY_REQUESTS, "queue_full"),
            RequestError::AboveShare { .. } => (StatusCode::TOO_MANY_REQUESTS, "above_share"),
            RequestError::LogprobsInUse { .. } => {
                (StatusCode::TOO_MANY_REQUESTS, "logprobs_exceeded")
            }
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
            // The client does not receive it.
            RequestError::ClientGone => (StatusCode::REQUEST_TIMEOUT, "client_gone"),
            RequestError::Failed(_) => (StatusCode::INTERNAL_SERVER_ERROR, "model_failed"),
            RequestError::DeviceFailed(_) => (StatusCode::SERVICE_UNAVAILABLE, "device_failed"),
            RequestError::TemplateFailed { .. }
            | RequestError::NoSystemRole { field: None, .. } => {
                (StatusCode::INTERNAL_SERVER_ERROR, "chat_template_failed")
            }
            RequestError::Denied { source, .. } => denied_status(source),
            RequestError::Stopped => (StatusCode::SERVICE_UNAVAILABLE, "shutting_down"),
        };
        let api = shown_error(status, code, error.client_message(), &error.to_string());
        let retry_after = match &error {
            RequestError::QueueFull { retry_after, .. }
            | RequestError::AboveShare { retry_after, .. } => Some(whole_seconds(*retry_after)),
            RequestError::Denied { source, .. } => retry_after_denied(source),
            _ => api.retry_after,
        };
        ApiError {
            param: error.field(),
            retry_after,
            ..api
        }
    }
}

/// Whether an error was caused by a full disk.
fn is_disk_full(error: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let io = error.downcast_ref::<io::Error>();
        if io.is_some_and(|io| {
            matches!(io.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
        }) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// The error of a file that the server cannot read or write. The log has its path, which clients must not see.
fn disk_error(code: &'static str, error: &(dyn Error + 'static)) -> ApiError {
    tracing::error!("{error}");
    if is_disk_full(error) {
        let message =
            "the server's disk is full; its operator must free space before it can store this";
        return ApiError::new(
            StatusCode::INSUFFICIENT_STORAGE,
            "disk_full",
            message.to_owned(),
        );
    }
    let message = "the server cannot read or write its files; its log has the reason";
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, code, message.to_owned())
}

/// An error whose message has the client's part of `full`. If that is not all of it, the log has the rest.
fn shown_error(status: StatusCode, code: &'static str, shown: String, full: &str) -> ApiError {
    if shown != full {
        match status.is_server_error() {
            true => tracing::error!("{full}"),
            false => tracing::warn!("{full}"),
        }
    }
    ApiError::new(status, code, shown)
}

impl From<VoteError> for ApiError {
    fn from(error: VoteError) -> ApiError {
        let (status, code) = match &error {
            VoteError::Off => (StatusCode::CONFLICT, "judgements_off"),
            VoteError::Quota(exceeded) => quota_status(exceeded),
            VoteError::Unreadable { path, source } => {
                let path = path.display();
                tracing::error!("{path}: {source}; restore or remove this file of votes");
                (StatusCode::SERVICE_UNAVAILABLE, "judgements_failed")
            }
            VoteError::Removed(_) => (StatusCode::INTERNAL_SERVER_ERROR, "judgements_failed"),
            VoteError::Io { .. } => return disk_error("judgements_failed", &error),
        };
        ApiError::new(status, code, error.to_string())
    }
}

impl From<ResultError> for ApiError {
    fn from(error: ResultError) -> ApiError {
        if let ResultError::Io { .. } | ResultError::Broken { .. } = &error {
            return disk_error("judgements_failed", &error);
        }
        let (status, code) = result_status(&error);
        ApiError::new(status, code, error.to_string())
    }
}

fn result_status(error: &ResultError) -> (StatusCode, &'static str) {
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
        if let PublishError::Upload(UploadError::Io { .. }) = &error {
            return disk_error("uploads_failed", &error);
        }
        if is_disk_full(&error) {
            return disk_error("registry_failed", &error);
        }
        let (status, code) = publish_status(&error);
        shown_error(status, code, error.client_message(), &error.to_string())
    }
}

fn publish_status(error: &PublishError) -> (StatusCode, &'static str) {
    match error {
        PublishError::NoRegistry => (StatusCode::CONFLICT, "no_registry"),
        PublishError::NameOfBase { .. }
        | PublishError::NameOfAlias { .. }
        | PublishError::InFolder { .. } => (StatusCode::CONFLICT, "persona_refused"),
        PublishError::NoAdapterRoot | PublishError::OutsideRoot { .. } => {
            (StatusCode::FORBIDDEN, "adapter_path_refused")
        }
        PublishError::NoSuchFolder { .. } => (StatusCode::NOT_FOUND, "adapter_not_found"),
        PublishError::NotInFolder { .. } => (StatusCode::NOT_FOUND, "persona_not_found"),
        PublishError::Upload(error) => match error {
            UploadError::Off => (StatusCode::CONFLICT, "uploads_off"),
            UploadError::Archive(_)
            | UploadError::Entry { .. }
            | UploadError::Missing { .. }
            | UploadError::OtherFormat(_)
            | UploadError::Apart
            | UploadError::Several { .. } => (StatusCode::BAD_REQUEST, "archive_refused"),
            UploadError::Adapter(_) => (StatusCode::BAD_REQUEST, "adapter_unusable"),
            UploadError::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "request_too_large"),
            UploadError::Quota(exceeded) => quota_status(exceeded),
            UploadError::TooMany { .. } => (StatusCode::INSUFFICIENT_STORAGE, "too_many_uploads"),
            UploadError::Unknown { .. } => (StatusCode::NOT_FOUND, "upload_not_found"),
            UploadError::Removed(_) | UploadError::Io { .. } => {
                (StatusCode::INTERNAL_SERVER_ERROR, "uploads_failed")
            }
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
            | RegistryError::Removed { .. }
            | RegistryError::NoLog { .. }
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

fn quota_status(exceeded: &QuotaExceeded) -> (StatusCode, &'static str) {
    // Clients retry 429 and 5xx, which helps only if room can be made.
    if exceeded.is_forbidden() {
        return (StatusCode::FORBIDDEN, "quota_is_zero");
    }
    if exceeded.is_too_large() {
        return match exceeded.resource {
            Resource::FileBytes => (StatusCode::PAYLOAD_TOO_LARGE, "file_too_large"),
            Resource::UploadBytes => (StatusCode::PAYLOAD_TOO_LARGE, "request_too_large"),
            _ => (StatusCode::FORBIDDEN, "adapter_bytes_exceeded"),
        };
    }
    match exceeded.resource {
        Resource::OpenJobs | Resource::OpenEvaluations => {
            (StatusCode::TOO_MANY_REQUESTS, "queue_full")
        }
        Resource::StoredJobs | Resource::StoredEvaluations => {
            (StatusCode::INSUFFICIENT_STORAGE, "too_many_jobs")
        }
        Resource::Files | Resource::FileBytes => {
            (StatusCode::INSUFFICIENT_STORAGE, "too_many_files")
        }
        Resource::Votes | Resource::VotePairs => (StatusCode::INSUFFICIENT_STORAGE, "votes_full"),
        Resource::AdapterBytes => (StatusCode::INSUFFICIENT_STORAGE, "adapter_bytes_exceeded"),
        Resource::UploadBytes => (StatusCode::INSUFFICIENT_STORAGE, "upload_bytes_exceeded"),
    }
}

impl From<JobError> for ApiError {
    fn from(error: JobError) -> ApiError {
        if is_disk_full(&error) {
            return disk_error("jobs_failed", &error);
        }
        match &error {
            JobError::Io { .. } | JobError::Damaged { .. } => {
                return disk_error("jobs_failed", &error);
            }
            JobError::Results(ResultError::Io { .. } | ResultError::Broken { .. }) => {
                return disk_error("judgements_failed", &error);
            }
            _ => {}
        }
        let (status, code) = match &error {
            JobError::NoFile { .. } => (StatusCode::NOT_FOUND, "file_not_found"),
            JobError::NoJob { .. } => (StatusCode::NOT_FOUND, "job_not_found"),
            JobError::NoPage { .. } => (StatusCode::BAD_REQUEST, "invalid_page"),
            JobError::Invalid { .. } => (StatusCode::BAD_REQUEST, "invalid_value"),
            JobError::Rows(_) => (StatusCode::BAD_REQUEST, "invalid_file"),
            JobError::Plan(_) => (StatusCode::BAD_REQUEST, "invalid_job"),
            JobError::TrainMemory(_) => (StatusCode::BAD_REQUEST, "out_of_memory"),
            // The client does not receive it.
            JobError::Stopped => (StatusCode::REQUEST_TIMEOUT, "client_gone"),
            JobError::FileTooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "file_too_large"),
            JobError::FileInUse { .. } => (StatusCode::CONFLICT, "file_in_use"),
            JobError::Quota(exceeded) => quota_status(exceeded),
            JobError::EvaluationOver { .. } => (StatusCode::CONFLICT, "evaluation_state"),
            JobError::Results(error) => result_status(error),
            JobError::State { .. } | JobError::Publishing { .. } => {
                (StatusCode::CONFLICT, "job_state")
            }
            JobError::NoJobs { .. } => (StatusCode::CONFLICT, "no_jobs"),
            JobError::Denied(denied) => denied_status(denied),
            JobError::Publish(error) => publish_status(error),
            JobError::Io { .. }
            | JobError::Damaged { .. }
            | JobError::Random(_)
            | JobError::FolderRemoved => (StatusCode::INTERNAL_SERVER_ERROR, "jobs_failed"),
        };
        ApiError {
            param: error.field().map(str::to_owned),
            ..shown_error(status, code, error.client_message(), &error.to_string())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use std::path::PathBuf;

    use axum::http::header;
    use axum::response::IntoResponse as _;
    use formats::peft::PeftError;
    use registry::ReadError;

    use super::*;

    #[test]
    fn retry_after_is_rounded_up_and_clamped_for_a_full_queue() {
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
    fn errors_of_the_disk_hide_the_path() {
        let failed = |kind: ErrorKind| {
            ApiError::from(JobError::Io {
                path: "/srv/secret".into(),
                source: kind.into(),
            })
        };
        let full = failed(ErrorKind::StorageFull);
        assert_eq!(full.status, StatusCode::INSUFFICIENT_STORAGE);
        let denied = failed(ErrorKind::PermissionDenied);
        assert_eq!(denied.status, StatusCode::INTERNAL_SERVER_ERROR);
        let registry = ApiError::from(PublishError::Registry(RegistryError::Folder {
            path: "/srv/secret".into(),
            source: ErrorKind::StorageFull.into(),
        }));
        assert_eq!(registry.status, StatusCode::INSUFFICIENT_STORAGE);
        for error in [full, denied, registry] {
            assert!(!error.message.contains("secret"), "{}", error.message);
        }
    }

    #[test]
    fn errors_hide_the_folders_of_this_machine() {
        let root = "/srv/secret/lory";
        let file = || PathBuf::from(format!("{root}/warm/adapter_config.json"));
        let blob = || format!("{root}/adapters/{}", "0".repeat(64));
        let empty = || PeftError::Empty { path: file() };
        let io = || io::Error::from(ErrorKind::PermissionDenied);
        let registry = || {
            [
                RegistryError::Removed { name: root.into() },
                RegistryError::NoLog { name: root.into() },
                RegistryError::LogEntry {
                    path: format!("{root}/log/1.json"),
                    message: "damaged".into(),
                },
                RegistryError::Folder {
                    path: root.into(),
                    source: io(),
                },
                RegistryError::Corrupt {
                    path: blob(),
                    found: "1".repeat(64),
                },
                RegistryError::Missing { path: blob() },
                RegistryError::TooLarge {
                    path: file(),
                    limit: 1,
                },
                RegistryError::Adapter(empty()),
            ]
        };
        let other_base = || AdapterError::OtherBase {
            path: format!("{root}/warm"),
            what: "tokenizer",
            found: "a".into(),
            base: "b".into(),
        };
        let changed = || ReadError::Changed {
            path: file(),
            found: "a".into(),
        };
        let mut publish: Vec<PublishError> = registry().map(PublishError::from).into();
        publish.push(PublishError::InFolder {
            name: "warm".into(),
            path: format!("{root}/personas/warm").into(),
        });
        publish.push(PublishError::Adapter(Box::new(other_base())));
        publish.push(UploadError::from(RegistryError::Adapter(empty())).into());
        publish.push(UploadError::Removed(io()).into());
        let mut errors: Vec<ApiError> = publish.into_iter().map(ApiError::from).collect();
        errors.extend(registry().map(|error| JobError::from(PublishError::from(error)).into()));
        for source in [other_base(), changed().into()] {
            let (adapter, source) = ("0".repeat(64), Box::new(source));
            errors.push(RequestError::Adapter { adapter, source }.into());
        }
        errors.push(ApiError::from(VoteError::Unreadable {
            path: file(),
            source: io(),
        }));
        errors.push(ApiError::from(JobError::Results(ResultError::Io {
            path: file(),
            source: io(),
        })));
        for error in &errors {
            assert!(!error.message.contains("secret"), "{}", error.message);
        }
        // What helps the client stays.
        let shown = ApiError::from(PublishError::Registry(RegistryError::Adapter(empty())));
        assert_eq!(shown.message, "warm/adapter_config.json: no LoRA tensors");
        let missing = ApiError::from(PublishError::from(RegistryError::Missing { path: blob() }));
        let begin = format!("adapters/{}: missing; publish", "0".repeat(64));
        assert!(missing.message.starts_with(&begin), "{}", missing.message);
    }

    #[test]
    fn a_permanent_error_has_no_retry_after() {
        let response = ApiError::from(RequestError::Timeout).into_response();
        assert_eq!(response.status(), StatusCode::GATEWAY_TIMEOUT);
        assert!(response.headers().get(header::RETRY_AFTER).is_none());
    }
}
