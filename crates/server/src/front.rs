//! In front of every route: a request's id, its line in the log, the time that its body may take, whether the server still
//! takes requests, and how many are under way. What it counts is on `/metrics`.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http_body::{Frame, SizeHint};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use tokio::sync::{Notify, oneshot};

use crate::error::ApiError;
use crate::settings::{MAX_HEADERS, ServerSettings};
use service::{RequestLog, RequestLogEntry};

/// A request's id, taken from the client or made here.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The longest id that is taken.
const MAX_REQUEST_ID: usize = 128;
/// Routes that say how the server is. They are answered while it drains, and have no line in the log where they succeed.
const PROBES: [&str; 3] = ["/health", "/ready", "/metrics"];

/// The address of a client.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer(pub IpAddr);

/// What all requests have in common.
pub(super) struct Front {
    pub settings: ServerSettings,
    draining: AtomicBool,
    under_way: UnderWay,
    responses: Family<Answered, Counter>,
    refused: Counter,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    route: String,
    status: u16,
}

impl Front {
    pub fn new(settings: ServerSettings) -> Arc<Front> {
        Arc::new(Front {
            settings,
            draining: AtomicBool::new(false),
            under_way: UnderWay::default(),
            responses: Family::default(),
            refused: Counter::default(),
        })
    }

    /// From here on new requests are refused.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::SeqCst);
    }

    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// Resolves when no request is under way.
    pub async fn idle(&self) {
        while self.under_way.count() > 0 {
            self.under_way.0.ended.notified().await;
        }
    }

    /// How many requests are under way.
    pub fn under_way(&self) -> usize {
        self.under_way.count()
    }

    /// A connection was refused, as there are as many as may be.
    pub fn count_refused_connection(&self) {
        self.refused.inc();
    }

    /// Adds what is counted here to a registry.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "lory_http_responses",
            "Responses by route and status",
            self.responses.clone(),
        );
        registry.register(
            "lory_http_connections_refused",
            "Connections that were refused, as there were as many as may be",
            self.refused.clone(),
        );
    }
}

/// How many requests are under way.
#[derive(Clone, Default)]
struct UnderWay(Arc<Counted>);

#[derive(Default)]
struct Counted {
    count: AtomicUsize,
    ended: Notify,
}

impl UnderWay {
    fn count(&self) -> usize {
        self.0.count.load(Ordering::SeqCst)
    }

    fn one_more(&self) -> One {
        self.0.count.fetch_add(1, Ordering::SeqCst);
        One(Arc::clone(&self.0))
    }
}

/// One request that is under way, until it is dropped.
struct One(Arc<Counted>);

impl Drop for One {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::SeqCst);
        // Remembered where nobody waits yet.
        self.0.ended.notify_one();
    }
}

/// The layer in front of all others.
pub(super) async fn front(
    State(front): State<Arc<Front>>,
    mut request: Request,
    next: Next,
) -> Response {
    let id = request_id(request.headers());
    let route = match request.extensions().get::<MatchedPath>() {
        Some(route) => route.as_str().to_owned(),
        None => "none".to_owned(),
    };
    let probe = PROBES.contains(&&*route);
    let log = RequestLog::new(line(&request, &id, probe));
    request.extensions_mut().insert(Arc::clone(&log));
    request.extensions_mut().insert(Arc::clone(&front));

    // Counted before the look at whether it drains, so that a drain waits for every request that it did not refuse.
    let one = (!probe).then(|| front.under_way.one_more());
    let refused = if one.is_some() && front.is_draining() {
        Some(ApiError::draining(front.settings.drain_timeout))
    } else if headers_bytes(request.headers()) > MAX_HEADERS {
        Some(ApiError::headers_too_large())
    } else {
        None
    };
    let mut response = match refused {
        Some(error) => error.into_response(),
        None => answer(&front, request, next).await,
    };

    let status = response.status();
    log.update(|entry| entry.status = Some(status.as_u16()));
    let answered = Answered {
        route,
        status: status.as_u16(),
    };
    front.responses.get_or_create(&answered).inc();
    let headers = response.headers_mut();
    headers.insert(REQUEST_ID, id);
    // After these the rest of the body may still be on its way, and after a drain the server is gone.
    if front.is_draining() || status == StatusCode::REQUEST_TIMEOUT {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response.map(|body| Body::new(Held::new(body, (log, one))))
}

/// The route's answer, unless the request's body takes too long to come.
async fn answer(front: &Front, request: Request, next: Next) -> Response {
    let (guard, read) = oneshot::channel::<()>();
    let request = request.map(|body| Body::new(Held::new(body, guard)));
    let limit = front.settings.body_timeout;
    let overdue = async {
        // Resolves when the body was read or thrown away.
        if tokio::time::timeout(limit, read).await.is_ok() {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        response = next.run(request) => response,
        () = overdue => ApiError::slow_body(limit).into_response(),
    }
}

/// The client's own id if it can stand in a log as it is, else a new one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let sane = |value: &&HeaderValue| {
        let good = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(byte);
        (1..=MAX_REQUEST_ID).contains(&value.len()) && value.as_bytes().iter().all(good)
    };
    if let Some(given) = headers.get(REQUEST_ID).filter(sane) {
        return given.clone();
    }
    let random = || RandomState::new().build_hasher().finish();
    let id = format!("req-{:016x}{:016x}", random(), random());
    HeaderValue::try_from(id).unwrap_or(HeaderValue::from_static("req-none"))
}

fn headers_bytes(headers: &HeaderMap) -> usize {
    let bytes = |(name, value): (&HeaderName, &HeaderValue)| name.as_str().len() + value.len();
    headers.iter().map(bytes).sum()
}

/// Writes the request's line when nobody works on it any more.
fn line(
    request: &Request,
    id: &HeaderValue,
    probe: bool,
) -> impl Fn(&RequestLogEntry) + Send + Sync + 'static {
    let began = Instant::now();
    let id = id.to_str().unwrap_or_default().to_owned();
    let method = request.method().clone();
    // Without the query: people put secrets there.
    let path: String = request.uri().path().chars().take(200).collect();
    let peer = request.extensions().get::<Peer>().map(|peer| peer.0);
    move |entry| {
        let ms = |time: Duration| (time.as_secs_f64() * 1e6).round() / 1e3;
        macro_rules! event {
            ($level:ident) => {
                tracing::$level!(
                    target: "lory::request",
                    id,
                    peer = peer.map(|peer| peer.to_string()),
                    method = method.as_str(),
                    path,
                    status = entry.status,
                    key = entry.key,
                    persona = entry.persona,
                    version = entry.version,
                    outcome = entry.outcome,
                    prompt_tokens = entry.outcome.map(|_| entry.prompt_tokens),
                    cached_tokens = entry.outcome.map(|_| entry.cached_tokens),
                    completion_tokens = entry.outcome.map(|_| entry.completion_tokens),
                    queue_ms = entry.queue.map(ms),
                    first_token_ms = entry.first_token.map(ms),
                    total_ms = ms(began.elapsed()),
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

/// A body, and something that lives as long as it does.
struct Held<G> {
    body: Body,
    _guard: G,
}

impl<G> Held<G> {
    fn new(body: Body, guard: G) -> Held<G> {
        Held {
            body,
            _guard: guard,
        }
    }
}

impl<G: Unpin> HttpBody for Held<G> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_taken_if_it_can_stand_in_a_log() {
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
