//! What each client holds of the adapter pool: adapters that it pins, and loads in progress. Decides whether it may take more while
//! others wait. Does not know adapters, only their ids.
//!
//! Memory is shared as permits are (`permit`): a client that pins adapters may pin another one only while it pins less than a
//! multiple of the free bytes. Load slots are not kept free, as a load soon ends: a client gives way to a waiting one with fewer.

use std::collections::{BTreeMap, HashMap};

use crate::adapter_id::AdapterId;
use crate::client_id::ClientId;
use crate::request::Client;

/// How many bytes a client of weight 1 may pin for each free one.
const PINNED_PER_FREE: u64 = 2;

#[derive(Default)]
pub(crate) struct AdapterShares {
    /// How many requests of a client hold each adapter.
    pins: HashMap<u64, BTreeMap<AdapterId, usize>>,
    loads: HashMap<ClientId, usize>,
    /// Reservations that wait for a load slot.
    waiting_to_load: HashMap<ClientId, usize>,
}

impl AdapterShares {
    /// A request of `client` holds an adapter.
    pub fn pin(&mut self, client: ClientId, id: AdapterId) {
        if let Some(client) = client {
            *self.pins.entry(client).or_default().entry(id).or_default() += 1;
        }
    }

    /// A request of `client` no longer holds an adapter.
    pub fn unpin(&mut self, client: ClientId, id: AdapterId) {
        let Some(pins) = client.and_then(|client| self.pins.get_mut(&client)) else {
            return;
        };
        if let Some(count) = pins.get_mut(&id) {
            *count -= 1;
            if *count == 0 {
                pins.remove(&id);
            }
        }
        if pins.is_empty() {
            self.pins.retain(|_, pins| !pins.is_empty());
        }
    }

    /// Whether a request of `client` holds the adapter.
    pub fn pins(&self, client: ClientId, id: &AdapterId) -> bool {
        self.pinned(client).any(|pinned| pinned == id)
    }

    /// The adapters that a client's requests hold.
    pub fn pinned(&self, client: ClientId) -> impl Iterator<Item = &AdapterId> {
        let pins = client.and_then(|client| self.pins.get(&client));
        pins.into_iter().flat_map(BTreeMap::keys)
    }

    /// Whether a client that pins `own` bytes may pin `more`, with `free` bytes left then that no request pins.
    pub fn allows(client: Option<Client>, own: u64, more: u64, free: u64) -> bool {
        let Some(client) = client else {
            return true;
        };
        let most = free.saturating_mul(PINNED_PER_FREE * u64::from(client.weight.get()));
        own == 0 || more == 0 || own.saturating_add(more) <= most
    }

    /// Whether no other client that has fewer loads in progress waits for a slot.
    pub fn may_load(&self, client: ClientId) -> bool {
        let loads = |client: &ClientId| self.loads.get(client).copied().unwrap_or(0);
        let own = loads(&client);
        let mut waiting = self.waiting_to_load.iter();
        !waiting.any(|(other, count)| *count > 0 && *other != client && loads(other) < own)
    }

    /// A load began or ended.
    pub fn count_load(&mut self, client: ClientId, begins: bool) {
        count(&mut self.loads, client, begins);
    }

    /// A reservation began or ended to wait for a load slot.
    pub fn count_waiting_to_load(&mut self, client: ClientId, begins: bool) {
        count(&mut self.waiting_to_load, client, begins);
    }
}

fn count(counts: &mut HashMap<ClientId, usize>, client: ClientId, up: bool) {
    let count = counts.entry(client).or_default();
    *count = if up {
        *count + 1
    } else {
        count.saturating_sub(1)
    };
    if *count == 0 {
        counts.remove(&client);
    }
}
