//! In front of the routes that are not open to everybody: whose key it is, whether it may come in here, and whether it has
//! requests left this minute. Which personas a key may use is `service`'s business, which knows who is asked.

use std::convert::Infallible;
use std::sync::Arc;

use axum::extract::{FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::Response;

use crate::error::ApiError;
use crate::front::Front;
use auth::{Denied, Key};
use service::{Caller, RequestLog};

/// Routes for every key.
pub(super) async fn any_key(request: Request, next: Next) -> Result<Response, ApiError> {
    admit(request, next, |_| Ok(())).await
}

/// Routes for keys with admin rights.
pub(super) async fn admin(request: Request, next: Next) -> Result<Response, ApiError> {
    admit(request, next, Key::check_admin).await
}

/// Routes for keys that may train.
pub(super) async fn training(request: Request, next: Next) -> Result<Response, ApiError> {
    admit(request, next, Key::check_train).await
}

/// `/metrics`: for admins, unless the server was told that everybody may read it.
pub(super) async fn metrics(request: Request, next: Next) -> Result<Response, ApiError> {
    if front_of(&request).is_some_and(|front| front.settings.open_metrics) {
        return Ok(next.run(request).await);
    }
    admit(request, next, Key::check_admin).await
}

fn front_of(request: &Request) -> Option<Arc<Front>> {
    request.extensions().get::<Arc<Front>>().cloned()
}

async fn admit(
    mut request: Request,
    next: Next,
    right: fn(&Key) -> Result<(), Denied>,
) -> Result<Response, ApiError> {
    let front = front_of(&request).ok_or_else(|| ApiError::internal("no server in front"))?;
    let log = request.extensions().get::<Arc<RequestLog>>().cloned();
    let key = match &front.settings.keys {
        None => {
            own_page(&front, request.headers())?;
            None
        }
        Some(keys) => {
            let key = keys.find(bearer(request.headers()).ok_or(Denied::NoKey)?)?;
            if let Some(log) = &log {
                log.update(|entry| entry.key = Some(key.name().to_owned()));
            }
            right(&key)?;
            key.count_request()?;
            Some(key)
        }
    };
    request.extensions_mut().insert(Caller::new(key, log));
    Ok(next.run(request).await)
}

/// What stands behind `Authorization: Bearer`.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, secret) = value.trim().split_once(' ')?;
    let secret = secret.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !secret.is_empty()).then_some(secret)
}

/// Without keys anybody on this machine may ask, and so may any web page in a browser on it. A page says where it comes from:
/// it must be from here, or from where the server was told.
fn own_page(front: &Front, headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(origin) = headers.get(header::ORIGIN) else {
        return Ok(());
    };
    let named = front.settings.origins.iter().any(|named| named == origin);
    let host = headers.get(header::HOST).map(|host| host.as_bytes());
    let own = ["http://", "https://"]
        .iter()
        .any(|scheme| origin.as_bytes().strip_prefix(scheme.as_bytes()) == host && host.is_some());
    if named || own {
        return Ok(());
    }
    Err(ApiError::origin())
}

/// Extracts the [`Caller`] that the guard put in front of the handler; the default where a route has no guard.
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
    fn a_bearer_is_read_however_it_is_spelt() {
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
