//! Bounds how many request bodies of one key arrive at the same time: a body that arrives slowly keeps a connection that others need.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::body::{Body, HttpBody as _};

use crate::error::ApiError;
use crate::guarded_body::GuardedBody;

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

    /// A body of this key, which counts until it is dropped, as its reader does at its end.
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
        let place = Place {
            bodies: Arc::clone(self),
            key: key.to_owned(),
        };
        Ok(Body::new(GuardedBody::new(body, place)))
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
