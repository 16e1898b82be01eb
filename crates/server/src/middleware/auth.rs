//! The layer around the routes that need a key: finds the key, checks its permission and counts the request against its rate limit. A
//! request that is refused for lack of room does not count.
//! Which personas a key may use is up to `service`, which knows which persona a request names.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;

use crate::error::ApiError;
use crate::middleware::request_log::Peer;
use crate::server_state::ServerState;
use crate::work::RequestBody;
use auth::{AuthError, Key};
use service::{Caller, RequestLog};

/// Who may call a group of routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Every key.
    AnyKey,
    /// Keys that may train.
    Training,
    /// Keys with admin rights.
    Admin,
    /// Keys with admin rights, or everyone if the server's settings say so.
    Metrics,
}

impl Access {
    fn check(self, key: &Key) -> Result<(), AuthError> {
        match self {
            Access::AnyKey => Ok(()),
            Access::Training => key.check_train(),
            Access::Admin | Access::Metrics => key.check_admin(),
        }
    }
}

/// See the module.
pub(crate) async fn authorize(
    State(access): State<Access>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let server = request.extensions().get::<Arc<ServerState>>().cloned();
    let server = server.ok_or_else(|| ApiError::internal("the request has no server state"))?;
    if access == Access::Metrics && server.settings.open_metrics {
        return Ok(next.run(request).await);
    }
    let log = request.extensions().get::<Arc<RequestLog>>().cloned();
    let key = match &server.settings.keys {
        None => {
            check_origin(&server, request.headers())?;
            None
        }
        Some(keys) => {
            let key = keys.find(bearer(request.headers()).ok_or(AuthError::MissingKey)?);
            let key = key.map_err(|error| rejected(&server, &request, error))?;
            if let Some(log) = &log {
                log.update(|entry| entry.key = Some(key.name().to_owned()));
            }
            access.check(&key)?;
            key.count_request()?;
            Some(key)
        }
    };
    let charged = key.clone();
    if let Some(key) = &charged {
        let body = std::mem::take(request.body_mut());
        let counted = server.arriving_bodies.count(key.name(), body);
        *request.body_mut() = counted.inspect_err(|_| key.refund_request())?;
    }
    request.extensions_mut().insert(Caller::new(key, log));
    // Until the handler has returned its response, the body's bytes count.
    let body = RequestBody::default();
    request.extensions_mut().insert(body.clone());
    let response = next.run(request).await;
    body.free();
    // Waiting and asking again must not use up the key's limit.
    if let Some(key) = charged.filter(|_| is_refusal(response.status())) {
        key.refund_request();
    }
    Ok(response)
}

/// Whether a request was refused because the key or the server has no room for it now. It counts against no limit.
fn is_refusal(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
    )
}

/// The error for a key that was not found. Counts it.
fn rejected(server: &ServerState, request: &Request, error: AuthError) -> ApiError {
    let peer = request.extensions().get::<Peer>();
    let counted = peer.map(|peer| server.rejected_keys.count(peer.0, Instant::now()));
    match counted {
        Some(Err(wait)) => ApiError::too_many_rejected_keys(wait),
        _ => error.into(),
    }
}

/// The secret in `Authorization: Bearer`.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, secret) = value.trim().split_once(' ')?;
    let secret = secret.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !secret.is_empty()).then_some(secret)
}

/// A server without keys answers everyone on this machine, and so any web page in a browser on it. The browser sends the page's
/// origin: it must be this server, or an origin that the server allows.
fn check_origin(server: &ServerState, headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(origin) = headers.get(header::ORIGIN) else {
        return Ok(());
    };
    let mut allowed = server.settings.origins.iter();
    let allowed = allowed.any(|one| one.allows(origin));
    let host = headers.get(header::HOST).map(|host| host.as_bytes());
    let own = ["http://", "https://"]
        .iter()
        .any(|scheme| origin.as_bytes().strip_prefix(scheme.as_bytes()) == host && host.is_some());
    if allowed || own {
        return Ok(());
    }
    Err(ApiError::origin())
}

/// Extracts the [`Caller`] that [`authorize`] found; the default for a route that needs no key.
pub(crate) struct ApiCaller(pub Caller);

impl<S: Sync> FromRequestParts<S> for ApiCaller {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<ApiCaller, Infallible> {
        let caller = parts.extensions.get().cloned();
        Ok(ApiCaller(caller.unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    #[test]
    fn the_bearer_scheme_is_case_insensitive() {
        let read = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, HeaderValue::try_from(value).unwrap());
            bearer(&headers).map(str::to_owned)
        };
        for value in ["Bearer abc", "bearer abc", "BEARER  abc "] {
            assert_eq!(read(value).as_deref(), Some("abc"));
        }
        for value in ["", "abc", "Bearer", "Bearer ", "Basic abc"] {
            assert_eq!(read(value), None, "{value}");
        }
    }
}
