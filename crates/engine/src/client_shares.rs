//! What each client with requests has of the batch and of the KV cache, and what its share of both is: its part by weight among
//! the clients that have requests now. Decides who is above and who is below; the scheduler preempts and admits.
//!
//! A share is rounded down, and is at least one row. A client below it gains a row only from one that has at least one more than
//! its own share, so the rows of clients whose requests stay the same stop moving.

use std::collections::BTreeMap;

use crate::client_id::ClientId;
use crate::sequence::Sequence;

/// The clients that have requests.
pub(crate) struct ClientShares(BTreeMap<ClientId, ClientShare>);

#[derive(Default)]
struct ClientShare {
    weight: usize,
    running: usize,
    /// Requests that wait and may preempt others.
    waiting: usize,
    /// KV blocks that its running requests hold.
    blocks: usize,
    row_share: usize,
    block_share: usize,
}

impl ClientShare {
    /// How far a number is above the client's part, to be compared between clients.
    fn per_weight(&self, number: usize) -> f64 {
        number as f64 / self.weight.max(1) as f64
    }
}

impl ClientShares {
    /// The clients of these sequences, for a batch of `max_batch` rows and a cache of `blocks` blocks.
    pub fn new<'a, A: 'a>(
        running: impl Iterator<Item = &'a Sequence<A>>,
        waiting: impl Iterator<Item = &'a Sequence<A>>,
        max_batch: usize,
        blocks: usize,
    ) -> Self {
        let mut clients: BTreeMap<ClientId, ClientShare> = BTreeMap::new();
        for sequence in running {
            let client = clients.entry(sequence.client_id()).or_default();
            client.weight = weight(sequence);
            client.running += 1;
            client.blocks += sequence.blocks.ids().len();
        }
        for sequence in waiting {
            let client = clients.entry(sequence.client_id()).or_default();
            client.weight = weight(sequence);
            // A priority above 0 yields to others.
            client.waiting += usize::from(sequence.priority <= 0);
        }
        let weights: usize = clients.values().map(|client| client.weight).sum();
        for client in clients.values_mut() {
            client.row_share = (max_batch * client.weight / weights).max(1);
            client.block_share = blocks * client.weight / weights;
        }
        ClientShares(clients)
    }

    /// Whether only one client has requests.
    pub fn is_single(&self) -> bool {
        self.0.len() < 2
    }

    /// Whether requests have clients.
    pub fn has_clients(&self) -> bool {
        self.0.keys().any(Option::is_some)
    }

    /// Whether the client runs fewer requests than its share of the batch.
    pub fn is_below_rows(&self, client: ClientId) -> bool {
        let client = self.0.get(&client);
        client.is_none_or(|client| client.running < client.row_share)
    }

    /// The clients with their shares of the batch.
    pub fn row_shares(&self) -> impl Iterator<Item = (ClientId, usize)> {
        self.0.iter().map(|(id, client)| (*id, client.row_share))
    }

    /// Whether the client stays within its share of the blocks with `more`.
    pub fn fits_block_share(&self, client: ClientId, more: usize) -> bool {
        let client = self.0.get(&client);
        client.is_none_or(|client| client.blocks + more <= client.block_share)
    }

    /// The rows that waiting requests of clients below their shares would fill.
    pub fn wanted_rows(&self) -> usize {
        let wanted = |client: &ClientShare| {
            let lacking = client.row_share.saturating_sub(client.running);
            lacking.min(client.waiting)
        };
        self.0.values().map(wanted).sum()
    }

    /// The clients that run more than their share of the batch, the furthest above it first.
    pub fn above_rows(&self) -> Vec<ClientId> {
        self.above(|client| client.running, |client| client.row_share)
    }

    /// The clients that hold more than their share of the blocks, the furthest above it first.
    pub fn above_blocks(&self) -> Vec<ClientId> {
        self.above(|client| client.blocks, |client| client.block_share)
    }

    fn above(
        &self,
        has: impl Fn(&ClientShare) -> usize,
        share: impl Fn(&ClientShare) -> usize,
    ) -> Vec<ClientId> {
        let above = self.0.iter().filter(|(_, c)| has(c) > share(c));
        let mut above: Vec<_> = above.map(|(id, c)| (c.per_weight(has(c)), *id)).collect();
        above.sort_by(|(a, _), (b, _)| b.total_cmp(a));
        above.into_iter().map(|(_, id)| id).collect()
    }

    /// How many requests the client runs.
    pub fn running(&self, client: ClientId) -> usize {
        self.0.get(&client).map_or(0, |client| client.running)
    }

    /// Whether a request with `needed` blocks has more than its client's share.
    pub fn is_large(&self, client: ClientId, needed: usize) -> bool {
        let client = self.0.get(&client);
        client.is_some_and(|client| needed > client.block_share)
    }

    /// A sequence was admitted and holds `blocks` blocks.
    pub fn count_admitted<A>(&mut self, sequence: &Sequence<A>) {
        if let Some(client) = self.0.get_mut(&sequence.client_id()) {
            client.running += 1;
            client.blocks += sequence.blocks.ids().len();
            client.waiting = client
                .waiting
                .saturating_sub(usize::from(sequence.priority <= 0));
        }
    }

    /// A running sequence is preempted; it still holds its blocks.
    pub fn count_preempted<A>(&mut self, sequence: &Sequence<A>) {
        if let Some(client) = self.0.get_mut(&sequence.client_id()) {
            client.running = client.running.saturating_sub(1);
            client.blocks = client.blocks.saturating_sub(sequence.blocks.ids().len());
            client.waiting += usize::from(sequence.priority <= 0);
        }
    }
}

fn weight<A>(sequence: &Sequence<A>) -> usize {
    sequence
        .client
        .map_or(1, |client| client.weight.get() as usize)
}
