//! The layer around every route: gives a request its id and its line in the log, counts it, refuses it while the server drains or if
//! its headers or its path are too large, limits the time that its body may take, and holds back refusals of a client that gets many.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tokio::sync::oneshot;

use crate::connections::OpenConnection;
use crate::error::{ApiError, ErrorCode};
use crate::guarded_body::GuardedBody;
use crate::host;
use crate::milliseconds::milliseconds;
use crate::refusal_pace::{self, Payer};
use crate::server_state::ServerState;
use crate::settings::{MAX_HEADERS, MAX_URI};
use service::{RequestLog, RequestLogEntry};

/// The header with a request's id, from the client or generated.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The longest id that is accepted from a client, in bytes.
const MAX_REQUEST_ID: usize = 128;
/// Routes that report the server's health. They are answered while it drains, and logged at the level debug.
const PROBES: [&str; 3] = ["/health", "/ready", "/metrics"];

/// The address of a client.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer(pub IpAddr);

/// See the module.
pub(crate) async fn request_log(
    State(server): State<Arc<ServerState>>,
    mut request: Request,
    next: Next,
) -> Response {
    let id = request_id(request.headers());
    let route = match request.extensions().get::<MatchedPath>() {
        Some(route) => route.as_str().to_owned(),
        None => "none".to_owned(),
    };
    let probe = PROBES.contains(&&*route);
    let peer = request.extensions().get::<Peer>().map(|peer| peer.0);
    let log = RequestLog::new(log_line(&request, &id, probe));
    request.extensions_mut().insert(Arc::clone(&log));
    request.extensions_mut().insert(Arc::clone(&server));

    let connection = request.extensions().get::<OpenConnection>();
    let connection = connection.map(OpenConnection::begin_request);
    // Counted before the check for a drain, so that a drain waits for every request that it did not refuse.
    let in_flight = (!probe).then(|| server.begin_request());
    let mut response = match refused(&server, &request, probe) {
        Some(error) => error.into_response(),
        None => with_body_timeout(server.settings.body_timeout, request, next).await,
    };

    let status = response.status();
    let code = response.extensions().get::<ErrorCode>().copied();
    let mut key = None;
    log.update(|entry| {
        entry.status = Some(status.as_u16());
        entry.code = code.map(|code| code.0);
        key.clone_from(&entry.key);
    });
    let is_refusal = refusal_pace::is_refusal(&route, status);
    server.count_response(route, status);
    let mut in_progress = Some((in_flight, connection));
    if is_refusal {
        let delay = server
            .refusal_pace
            .delay(Payer::of(key, peer), Instant::now());
        if !delay.is_zero() {
            // Meanwhile the connection counts as idle, and a drain does not wait.
            in_progress = None;
            tokio::time::sleep(delay).await;
        }
    }
    let headers = response.headers_mut();
    headers.insert(REQUEST_ID, id);
    // After a timeout the rest of the body may still arrive, and after a drain the server ends.
    if server.is_draining() || status == StatusCode::REQUEST_TIMEOUT {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response.map(|body| Body::new(GuardedBody::new(body, (log, in_progress))))
}

/// Why a request is refused before its route, if it is.
fn refused(server: &ServerState, request: &Request, is_probe: bool) -> Option<ApiError> {
    let headers = request.headers();
    if host::is_ambiguous(headers) {
        Some(ApiError::several_hosts())
    } else if let Some(host) = foreign_host(server, request) {
        Some(ApiError::host(host))
    } else if let Some(encoding) = content_encoding(headers) {
        Some(ApiError::content_encoding(encoding))
    } else if !is_probe && server.is_draining() {
        Some(ApiError::draining(server.settings.drain_timeout))
    } else if headers_bytes(headers) > MAX_HEADERS {
        Some(ApiError::headers_too_large())
    } else if uri_bytes(request.uri()) > MAX_URI {
        Some(ApiError::uri_too_long(uri_bytes(request.uri())))
    } else {
        None
    }
}

/// The route's response, or an error if the request's body takes longer than `limit` to arrive.
async fn with_body_timeout(limit: Duration, request: Request, next: Next) -> Response {
    let (guard, read) = oneshot::channel::<()>();
    let request = request.map(|body| Body::new(GuardedBody::new(body, guard)));
    let overdue = async {
        // Resolves when the body was read or dropped.
        if tokio::time::timeout(limit, read).await.is_ok() {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        response = next.run(request) => response,
        () = overdue => ApiError::slow_body(limit).into_response(),
    }
}

/// The client's own id if it is safe to log as it is, else a new one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let is_safe = |value: &&HeaderValue| {
        let good = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(byte);
        (1..=MAX_REQUEST_ID).contains(&value.len()) && value.as_bytes().iter().all(good)
    };
    if let Some(given) = headers.get(REQUEST_ID).filter(is_safe) {
        return given.clone();
    }
    let random = || RandomState::new().build_hasher().finish();
    let id = format!("req-{:016x}{:016x}", random(), random());
    HeaderValue::try_from(id).unwrap_or(HeaderValue::from_static("req-none"))
}

/// A host name in the request that is not the server's. With keys a web page gains nothing from it, so that a server behind a proxy
/// needs no list of names.
fn foreign_host<'r>(server: &ServerState, request: &'r Request) -> Option<&'r str> {
    let settings = &server.settings;
    if settings.keys.is_some() && settings.allowed_hosts.is_empty() {
        return None;
    }
    host::refused(request.headers(), request.uri(), &settings.allowed_hosts)
}

/// The encoding of a body that is not sent as it is.
fn content_encoding(headers: &HeaderMap) -> Option<&str> {
    let encoding = headers.get(header::CONTENT_ENCODING)?;
    let encoding = encoding.to_str().unwrap_or("that is not ASCII").trim();
    (!encoding.is_empty() && !encoding.eq_ignore_ascii_case("identity")).then_some(encoding)
}

fn uri_bytes(uri: &Uri) -> usize {
    uri.path_and_query().map_or(0, |uri| uri.as_str().len())
}

fn headers_bytes(headers: &HeaderMap) -> usize {
    let bytes = |(name, value): (&HeaderName, &HeaderValue)| name.as_str().len() + value.len();
    headers.iter().map(bytes).sum()
}

/// Writes the request's line in the log, once its response has ended.
fn log_line(
    request: &Request,
    id: &HeaderValue,
    probe: bool,
) -> impl Fn(&RequestLogEntry) + Send + Sync + 'static {
    let started = Instant::now();
    let id = id.to_str().unwrap_or_default().to_owned();
    let method = request.method().clone();
    // The query is left out, since it may hold secrets.
    let path: String = request.uri().path().chars().take(200).collect();
    let peer = request.extensions().get::<Peer>().map(|peer| peer.0);
    move |entry| {
        macro_rules! event {
            ($level:ident) => {
                tracing::$level!(
                    target: "lory::request",
                    id,
                    peer = peer.map(|peer| peer.to_string()),
                    method = method.as_str(),
                    path,
                    status = entry.status,
                    code = entry.code,
                    key = entry.key,
                    persona = entry.persona,
                    version = entry.version,
                    outcome = entry.outcome,
                    prompt_tokens = entry.outcome.map(|_| entry.prompt_tokens),
                    cached_tokens = entry.outcome.map(|_| entry.cached_tokens),
                    completion_tokens = entry.outcome.map(|_| entry.completion_tokens),
                    ignored_keys = (entry.ignored_keys > 0).then_some(entry.ignored_keys),
                    queue_ms = entry.queue.map(milliseconds),
                    first_token_ms = entry.first_token.map(milliseconds),
                    total_ms = milliseconds(started.elapsed()),
                    "request"
                )
            };
        }
        match entry.status {
            Some(500..) if !probe => event!(warn),
            _ if probe => event!(debug),
            _ => event!(info),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clients_id_is_kept_if_it_is_safe_to_log() {
        let id = |given: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(REQUEST_ID, HeaderValue::try_from(given).unwrap());
            request_id(&headers).to_str().unwrap().to_owned()
        };
        assert_eq!(id("abc-1.2_3:4"), "abc-1.2_3:4");
        for odd in ["", "a b", "\"quoted\"", "a=b", &"x".repeat(129)] {
            let made = id(odd);
            assert!(made.starts_with("req-") && made.len() == 36, "{made}");
        }
        assert_ne!(id(""), id(""));
    }
}
