//! Bounds how many request bodies of one key arrive at the same time: a body that arrives slowly keeps a connection that others need.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use axum::body::{Body, Bytes};
use http_body::{Body as _, Frame, SizeHint};

use crate::error::ApiError;

/// A key may use one of this many connections for bodies that arrive.
const CONNECTIONS_PER_BODY: usize = 8;

/// See the module.
pub(crate) struct ArrivingBodies {
    per_key: usize,
    keys: Mutex<HashMap<String, usize>>,
}

impl ArrivingBodies {
    /// For a server with this many connections.
    pub fn new(max_connections: usize) -> Arc<ArrivingBodies> {
        Arc::new(ArrivingBodies {
            per_key: (max_connections / CONNECTIONS_PER_BODY).max(1),
            keys: Mutex::default(),
        })
    }

    /// A body of this key, which counts until it has arrived or is dropped.
    ///
    /// # Errors
    /// Too many of the key's bodies arrive.
    pub fn count(self: &Arc<Self>, key: &str, body: Body) -> Result<Body, ApiError> {
        if body.is_end_stream() {
            return Ok(body);
        }
        let mut keys = self.lock();
        let of_key = keys.get(key).copied().unwrap_or_default();
        if of_key >= self.per_key {
            return Err(ApiError::arriving_bodies(self.per_key));
        }
        keys.insert(key.to_owned(), of_key + 1);
        drop(keys);
        Ok(Body::new(CountedBody {
            body,
            place: Some(Place {
                bodies: Arc::clone(self),
                key: key.to_owned(),
            }),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts one body.
struct Place {
    bodies: Arc<ArrivingBodies>,
    key: String,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut keys = self.bodies.lock();
        if let Some(of_key) = keys.get_mut(&self.key) {
            *of_key -= 1;
            if *of_key == 0 {
                keys.remove(&self.key);
            }
        }
    }
}

/// A body that gives its place back at its end.
struct CountedBody {
    body: Body,
    place: Option<Place>,
}

impl http_body::Body for CountedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if !matches!(frame, Some(Ok(_))) || self.body.is_end_stream() {
            self.place = None;
        }
        Poll::Ready(frame)
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

    #[tokio::test]
    async fn one_key_cannot_use_all_connections_for_its_bodies() {
        let bodies = ArrivingBodies::new(16);
        let one = bodies.count("a", Body::from("first")).unwrap();
        let two = bodies.count("a", Body::from("second")).unwrap();
        let refused = bodies.count("a", Body::from("third")).unwrap_err();
        assert_eq!(refused.status().as_u16(), 429);
        drop(bodies.count("b", Body::from("other")).unwrap());
        // A body that has arrived does not count, even while its request goes on.
        let arrived = axum::body::to_bytes(one, 100).await.unwrap();
        assert_eq!(&arrived[..], b"first");
        let third = bodies.count("a", Body::from("third")).unwrap();
        assert!(bodies.count("a", Body::from("fourth")).is_err());
        // Nor does a request without a body.
        drop(bodies.count("a", Body::empty()).unwrap());
        drop((two, third));
        assert!(bodies.lock().is_empty());
    }
}
