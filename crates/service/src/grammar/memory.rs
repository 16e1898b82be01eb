//! Limits the memory of the automata that running answers build, in all and for each client.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The most bytes of the automata of all running answers together.
const MAX_BYTES: usize = 128 << 20;
/// The most bytes of the automata of one client's running answers.
const MAX_CLIENT_BYTES: usize = 64 << 20;

/// The bytes that each client uses; none for clients without a key. Its entries are clients with running answers.
#[derive(Debug, Default)]
pub struct GrammarMemory(Mutex<HashMap<Option<u64>, usize>>);

impl GrammarMemory {
    /// A lease of no bytes yet.
    pub fn lease(self: &Arc<Self>, client: Option<u64>) -> MemoryLease {
        MemoryLease {
            memory: Arc::clone(self),
            client,
            bytes: 0,
        }
    }

    /// The bytes of a client's running answers.
    #[cfg(test)]
    pub fn bytes_of(&self, client: Option<u64>) -> usize {
        let clients = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        clients.get(&client).copied().unwrap_or(0)
    }
}

/// The memory of one answer, which returns when it is dropped.
pub struct MemoryLease {
    memory: Arc<GrammarMemory>,
    client: Option<u64>,
    bytes: usize,
}

impl MemoryLease {
    /// Changes the size of the lease.
    ///
    /// # Errors
    /// A message for people: the client uses more than one may, or all clients do and this one has more than its share.
    pub fn resize(&mut self, bytes: usize) -> Result<(), String> {
        if bytes == self.bytes {
            return Ok(());
        }
        let clients = &self.memory.0;
        let mut clients = clients.lock().unwrap_or_else(PoisonError::into_inner);
        let own = clients.entry(self.client).or_default();
        *own = *own - self.bytes + bytes;
        self.bytes = bytes;
        let own = *own;
        let all: usize = clients.values().sum();
        let share = if all > MAX_BYTES {
            MAX_BYTES / clients.len()
        } else if self.client.is_some() {
            MAX_CLIENT_BYTES
        } else {
            MAX_BYTES
        };
        if own <= share {
            return Ok(());
        }
        let (own, share) = (own >> 20, share >> 20);
        Err(format!(
            "the grammars of the running answers of this key use {own} MiB; at most {share} MiB are available now; run fewer \
             answers at once"
        ))
    }
}

impl Drop for MemoryLease {
    fn drop(&mut self) {
        let clients = &self.memory.0;
        let mut clients = clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = clients.get_mut(&self.client) {
            *own -= self.bytes;
            if *own == 0 {
                clients.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn client_that_uses_more_than_its_share_is_refused_and_no_other() {
        let memory = Arc::new(GrammarMemory::default());
        let mut hostile = [memory.lease(Some(1)), memory.lease(Some(1))];
        hostile[0].resize(40 * MIB).unwrap();
        let error = hostile[1].resize(30 * MIB).unwrap_err();
        assert!(error.contains("use 70 MiB; at most 64 MiB"), "{error}");
        let mut second = memory.lease(Some(2));
        second.resize(60 * MIB).unwrap();
        // All memory is in use. A third client still gets its share, and those above theirs do not grow.
        let mut other = memory.lease(Some(3));
        other.resize(42 * MIB).unwrap();
        assert!(other.resize(43 * MIB).is_err());
        assert!(second.resize(61 * MIB).is_err());
        drop((hostile, second));
        other.resize(60 * MIB).unwrap();
        drop(other);
        assert!(memory.0.lock().unwrap().is_empty());
    }

    #[test]
    fn clients_without_a_key_share_all_memory() {
        let memory = Arc::new(GrammarMemory::default());
        let mut lease = memory.lease(None);
        lease.resize(128 * MIB).unwrap();
        assert!(lease.resize(129 * MIB).is_err());
        lease.resize(MIB).unwrap();
    }
}
