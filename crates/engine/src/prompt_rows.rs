//! The prompt rows of a step: how many are left, and which sequence gets how many.

use crate::client_id::ClientId;
use crate::sequence::{Arrival, Sequence};

/// The prompt rows of a step while they are being divided.
pub(crate) struct PromptRows {
    /// What is left for all.
    pub left: usize,
    /// The client whose turn it is; none if all may take rows.
    pub turn: Option<ClientId>,
    /// The only sequence that may be admitted, if one keeps the others out.
    pub only: Option<Arrival>,
    /// The rows of each sequence, in the order in which they were given out.
    pub chunks: Vec<(Arrival, usize)>,
}

impl PromptRows {
    /// The most rows that a sequence may get now.
    pub fn most<A>(&self, sequence: &Sequence<A>) -> usize {
        match self.turn {
            Some(client) if client != sequence.client_id() => 0,
            _ => self.left,
        }
    }

    /// The rows that a sequence has got.
    pub fn of(&self, arrival: Arrival) -> usize {
        let own = self.chunks.iter().filter(|(other, _)| *other == arrival);
        own.map(|(_, rows)| rows).sum()
    }

    /// Gives a sequence `rows` more rows.
    pub fn give(&mut self, arrival: Arrival, rows: usize) {
        if rows == 0 {
            return;
        }
        self.left -= rows;
        match self.chunks.iter_mut().find(|(other, _)| *other == arrival) {
            Some((_, own)) => *own += rows,
            None => self.chunks.push((arrival, rows)),
        }
    }
}
