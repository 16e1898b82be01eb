//! Errors as clients see them: always `{"error":{"message","type","code","param"}}`. Errors of the HTTP layer are defined here; `status`
//! gives the errors of the other crates their status and code, and `unknown_route` has those of paths.

mod status;
mod unknown_route;

use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::connections::NoRoom;
use crate::settings::{MAX_VALUES, VALUE_BYTES};
use crate::{MAX_BODY, MAX_HEADERS, MAX_URI};

pub(super) use unknown_route::{method_not_allowed, not_found};

/// `Retry-After` in seconds, if the error does not know how long it will take.
const RETRY_AFTER: u64 = 1;
/// The largest `Retry-After` for an estimate, in seconds.
const MAX_RETRY_AFTER: u64 = 60;

/// The longest message of an error, in bytes. A message may quote what the client sent, such as the name of an unknown field.
const MAX_MESSAGE: usize = 8 << 10;
/// The longest name of a field in an error, in bytes.
const MAX_PARAM: usize = 256;

/// An error.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ErrorBody {
    error: ErrorDetail,
}

/// What went wrong.
#[derive(Debug, Serialize, ToSchema)]
struct ErrorDetail {
    /// What is wrong, and what to do about it.
    message: String,
    /// `invalid_request_error`, `authentication_error`, `permission_error`, `rate_limit_error` or `server_error`.
    r#type: &'static str,
    /// A name for programs, such as `persona_not_found`.
    code: &'static str,
    /// The field that is wrong, if it is one field.
    #[schema(required)]
    param: Option<String>,
}

/// An error with its HTTP status.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
    /// The field that is wrong, if it is one field.
    param: Option<String>,
    /// Seconds after which a retry may succeed.
    retry_after: Option<u64>,
}

/// The code of a response's error, for the request log.
#[derive(Clone, Copy, Debug)]
pub(super) struct ErrorCode(pub &'static str);

impl ApiError {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        let is_temporary = matches!(
            status,
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
        );
        ApiError {
            status,
            code,
            message: message.into(),
            param: None,
            retry_after: is_temporary.then_some(RETRY_AFTER),
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

    /// The thing that a field names does not exist.
    pub fn missing(code: &'static str, message: impl Into<String>, field: &str) -> Self {
        ApiError {
            param: Some(field.to_owned()),
            ..ApiError::new(StatusCode::NOT_FOUND, code, message)
        }
    }

    /// Sets the field that is wrong, by the error's code: the field with the persona's name, or the one with the adapter.
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

    /// A body with too many JSON values.
    pub fn too_many_values(values: usize) -> Self {
        ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "request_too_large",
            format!(
                "the body has {values} JSON values (texts, numbers, lists, objects); at most {MAX_VALUES} are allowed"
            ),
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

    /// A compressed body.
    pub fn content_encoding(found: &str) -> Self {
        let found: String = found.chars().take(40).collect();
        ApiError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_content_encoding",
            format!(
                "bodies with Content-Encoding {found} are not supported; send the body without compression"
            ),
        )
    }

    /// A request with several headers Host.
    pub fn several_hosts() -> Self {
        ApiError::bad_request(
            "invalid_host",
            "the request has several headers Host; send one",
            None,
        )
    }

    /// A request to a host name that is not the server's.
    pub fn host(found: &str) -> Self {
        let found: String = found.chars().take(100).collect();
        ApiError::new(
            StatusCode::MISDIRECTED_REQUEST,
            "host_not_allowed",
            format!(
                "the request names the host {found:?}, which this server does not answer to; if clients or a proxy reach it under this name, \
                 start lory serve with --allowed-host {found}"
            ),
        )
    }

    pub fn loading() -> Self {
        ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "loading",
            "the base is loading; /ready reports when it is done".to_owned(),
        )
    }

    /// The server shuts down, within this time.
    pub fn draining(within: Duration) -> Self {
        ApiError {
            retry_after: Some(whole_seconds(within)),
            ..ApiError::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "shutting_down",
                "the server is shutting down and accepts no new requests; send the request to another server, or again later",
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

    pub fn uri_too_long(bytes: usize) -> Self {
        ApiError::new(
            StatusCode::URI_TOO_LONG,
            "uri_too_long",
            format!(
                "the path and the query have {bytes} bytes; at most {MAX_URI} are allowed; send what is long in the body"
            ),
        )
    }

    pub fn slow_headers(limit: Duration) -> Self {
        ApiError::new(
            StatusCode::REQUEST_TIMEOUT,
            "headers_too_slow",
            format!("the headers took longer than {limit:?} to arrive"),
        )
    }

    pub fn slow_body(limit: Duration) -> Self {
        ApiError::new(
            StatusCode::REQUEST_TIMEOUT,
            "body_too_slow",
            format!("the body took longer than {limit:?} to arrive"),
        )
    }

    pub fn too_many_connections(why: NoRoom) -> Self {
        let message = match why {
            NoRoom::Total(limit) => format!(
                "{limit} connections have requests in progress, which is the limit (--max-connections); only /health is answered"
            ),
            NoRoom::Address(limit) => format!(
                "{limit} connections of your address have requests in progress, which is the limit (--max-connections-per-address)"
            ),
        };
        ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "too_many_connections",
            message,
        )
    }

    /// An address has sent too many invalid keys.
    pub fn too_many_rejected_keys(wait: Duration) -> Self {
        ApiError {
            retry_after: Some(whole_seconds(wait)),
            ..ApiError::new(
                StatusCode::TOO_MANY_REQUESTS,
                "too_many_rejected_keys",
                "the API key is not known here, and your address has sent too many such keys; wait, then send a valid key",
            )
        }
    }

    /// A key has too much work waiting.
    pub fn work_queue_full(work: &str, limit: usize) -> Self {
        ApiError::new(
            StatusCode::TOO_MANY_REQUESTS,
            "queue_full",
            format!("{limit} {work} of this key wait already, which is the limit; try again later"),
        )
    }

    /// A body that needs more memory, counted with its values, than one key's bodies may have.
    pub fn body_never_fits(bytes: usize, limit: usize) -> Self {
        ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "request_too_large",
            format!(
                "the body counts as {bytes} bytes or more, {VALUE_BYTES} for each of its JSON values included, and the requests of one \
                 key may have {limit} together (from --body-memory); send a smaller body with fewer values"
            ),
        )
    }

    /// The bodies of one key would need more than this many bytes.
    pub fn bodies_of_key(limit: usize) -> Self {
        ApiError::new(
            StatusCode::TOO_MANY_REQUESTS,
            "request_bytes_exceeded",
            format!(
                "this key's requests that are being read have more than {limit} bytes together, which is the limit; send fewer large \
                 requests at once"
            ),
        )
    }

    /// So many bodies of one key arrive now.
    pub fn arriving_bodies(limit: usize) -> Self {
        ApiError::new(
            StatusCode::TOO_MANY_REQUESTS,
            "too_many_bodies",
            format!(
                "{limit} requests of this key are still sending their bodies, which is the limit; send them faster, or fewer at once"
            ),
        )
    }

    /// All bodies would need more than this many bytes.
    pub fn bodies_of_all(limit: usize) -> Self {
        ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "request_bytes_exceeded",
            format!(
                "all requests that are being read have more than {limit} bytes together, which is the limit (--body-memory); try again \
                 later"
            ),
        )
    }

    /// A request from a web page of another origin.
    pub fn origin() -> Self {
        ApiError::new(
            StatusCode::FORBIDDEN,
            "origin_not_allowed",
            "requests from web pages of another origin are refused; allow the origin with --cors-origin",
        )
    }

    /// The response as bytes, for a connection that no HTTP code handles any more.
    pub fn raw(&self) -> Vec<u8> {
        let body = serde_json::to_string(&self.body()).unwrap_or_default();
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

    pub fn code(&self) -> &'static str {
        self.code
    }

    #[cfg(test)]
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The body.
    pub fn body(&self) -> ErrorBody {
        let kind = match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        ErrorBody {
            error: ErrorDetail {
                message: shortened(&self.message, MAX_MESSAGE),
                r#type: kind,
                code: self.code,
                param: self
                    .param
                    .as_deref()
                    .map(|param| shortened(param, MAX_PARAM)),
            },
        }
    }
}

/// The text, cut after `most` bytes.
fn shortened(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    format!("{}…", &text[..text.floor_char_boundary(most)])
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        response.extensions_mut().insert(ErrorCode(self.code));
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

/// An estimated time as `Retry-After`.
fn whole_seconds(time: Duration) -> u64 {
    let seconds = time.as_secs_f64().ceil() as u64;
    seconds.clamp(RETRY_AFTER, MAX_RETRY_AFTER)
}
