//! Bounds the memory of request bodies: all of them together, and those of one key.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::ApiError;
use crate::work_pool::KeyName;

/// See the module.
pub(crate) struct BodyBudget {
    /// The most bytes of all bodies.
    total: usize,
    /// The most bytes of the bodies of one key.
    per_key: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    used: usize,
    keys: HashMap<KeyName, usize>,
}

impl BodyBudget {
    /// A budget of this many bytes. One key may use a quarter of it, but at least one body of `largest` bytes; on a server without
    /// keys, the caller may use all of it.
    pub fn new(total: usize, largest: usize) -> Arc<BodyBudget> {
        let total = total.max(largest);
        Arc::new(BodyBudget {
            total,
            per_key: (total / 4).max(largest),
            state: Mutex::default(),
        })
    }

    /// An empty reservation for a key.
    pub fn reserve(self: &Arc<Self>, key: KeyName) -> ReservedBytes {
        ReservedBytes {
            budget: Arc::clone(self),
            key,
            bytes: 0,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes of one body, until it is dropped.
pub(crate) struct ReservedBytes {
    budget: Arc<BodyBudget>,
    key: KeyName,
    bytes: usize,
}

impl ReservedBytes {
    /// Reserves more bytes.
    ///
    /// # Errors
    /// The key's bodies, or all bodies, would need more than their limit.
    pub fn grow(&mut self, bytes: usize) -> Result<(), ApiError> {
        let mut state = self.budget.lock();
        let per_key = match self.key {
            Some(_) => self.budget.per_key,
            None => self.budget.total,
        };
        // Waiting does not help a body that would not fit alone.
        if self.bytes + bytes > per_key {
            return Err(ApiError::body_never_fits(self.bytes + bytes, per_key));
        }
        let of_key = state.keys.get(&self.key).copied().unwrap_or_default();
        if of_key + bytes > per_key {
            return Err(ApiError::bodies_of_key(per_key));
        }
        if state.used + bytes > self.budget.total {
            return Err(ApiError::bodies_of_all(self.budget.total));
        }
        state.used += bytes;
        *state.keys.entry(self.key.clone()).or_default() += bytes;
        self.bytes += bytes;
        Ok(())
    }
}

impl Drop for ReservedBytes {
    fn drop(&mut self) {
        let mut state = self.budget.lock();
        state.used -= self.bytes;
        if let Some(of_key) = state.keys.get_mut(&self.key) {
            *of_key -= self.bytes;
            if *of_key == 0 {
                state.keys.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(error: ApiError) -> (u16, String) {
        let body = serde_json::json!(error.body());
        let code = body["error"]["code"].as_str().unwrap().to_owned();
        (error.status().as_u16(), code)
    }

    #[test]
    fn one_key_cannot_use_the_bytes_of_others() {
        let budget = BodyBudget::new(400, 50);
        let reserve = |name: &str, bytes| {
            let mut reserved = budget.reserve(Some(name.into()));
            reserved.grow(bytes).map(|()| reserved)
        };
        let first = reserve("a", 60).unwrap();
        let refused = reserve("a", 41).map(drop).unwrap_err();
        assert_eq!(code(refused), (429, "request_bytes_exceeded".to_owned()));
        let others: Vec<_> = ["b", "c", "d"]
            .map(|name| reserve(name, 100).unwrap())
            .into();
        let refused = reserve("e", 41).map(drop).unwrap_err();
        assert_eq!(code(refused), (503, "request_bytes_exceeded".to_owned()));
        drop((first, others));
        assert_eq!(budget.lock().used, 0);
        assert!(budget.lock().keys.is_empty());
        reserve("e", 100).unwrap();
    }

    #[test]
    fn largest_body_always_fits_alone() {
        let budget = BodyBudget::new(10, 50);
        budget.reserve(Some("a".into())).grow(50).unwrap();
        budget.reserve(None).grow(50).unwrap();
    }

    #[test]
    fn body_that_never_fits_is_refused_for_good() {
        let budget = BodyBudget::new(400, 50);
        let mut reserved = budget.reserve(Some("a".into()));
        reserved.grow(60).unwrap();
        let refused = reserved.grow(41).unwrap_err();
        assert_eq!(code(refused), (413, "request_too_large".to_owned()));
        // Without keys the caller may use all of it.
        let mut reserved = budget.reserve(None);
        reserved.grow(300).unwrap();
        let refused = reserved.grow(101).unwrap_err();
        assert_eq!(code(refused), (413, "request_too_large".to_owned()));
    }
}
