//! Divides the prompt rows of a step between clients, and records which sequence gets how many.

use std::collections::BTreeMap;

use crate::client_id::ClientId;
use crate::sequence::{Arrival, Sequence};

/// The prompt rows of a step while they are being divided.
pub(crate) struct PromptRows {
    /// What is left for all.
    pub left: usize,
    /// What is left for each client, in the pass that gives each its part; none in the pass that gives out the rest.
    pub parts: Option<BTreeMap<ClientId, usize>>,
    /// The rows of each sequence, in the order in which they were given out.
    pub chunks: Vec<(Arrival, usize)>,
}

impl PromptRows {
    /// The most rows that a sequence may get now.
    pub fn most<A>(&self, sequence: &Sequence<A>) -> usize {
        let part = self.parts.as_ref().map_or(self.left, |parts| {
            parts.get(&sequence.client_id()).copied().unwrap_or(0)
        });
        part.min(self.left)
    }

    /// The rows that a sequence has got.
    pub fn of(&self, arrival: Arrival) -> usize {
        let own = self.chunks.iter().filter(|(other, _)| *other == arrival);
        own.map(|(_, rows)| rows).sum()
    }

    /// Gives a sequence `rows` more rows.
    pub fn give<A>(&mut self, arrival: Arrival, sequence: &Sequence<A>, rows: usize) {
        if rows == 0 {
            return;
        }
        self.left -= rows;
        if let Some(parts) = &mut self.parts
            && let Some(part) = parts.get_mut(&sequence.client_id())
        {
            *part -= rows;
        }
        match self.chunks.iter_mut().find(|(other, _)| *other == arrival) {
            Some((_, own)) => *own += rows,
            None => self.chunks.push((arrival, rows)),
        }
    }
}
