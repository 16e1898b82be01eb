//! Decides which running sequence gives up its row or its blocks. Does not know why one must.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::client_id::ClientId;
use crate::sequence::{Arrival, Sequence};

/// The order in which sequences keep their blocks, as (not overdue, priority, arrival); the highest is preempted first.
pub(crate) type Urgency = (Reverse<bool>, i32, Arrival);

pub(crate) fn urgency<A>(arrival: Arrival, sequence: &Sequence<A>) -> Urgency {
    let priority = if sequence.overdue {
        0
    } else {
        sequence.priority
    };
    (Reverse(sequence.overdue), priority, arrival)
}

/// The least urgent of the sequences that match `which`. Never the oldest overdue one, so that it ends.
pub(crate) fn victim<A>(
    running: &BTreeMap<Arrival, Sequence<A>>,
    which: impl Fn(Arrival, &Sequence<A>) -> bool,
) -> Option<Arrival> {
    let protected = oldest_overdue(running);
    let urgencies = running
        .iter()
        .filter(|(arrival, sequence)| Some(**arrival) != protected && which(**arrival, sequence));
    let last = urgencies.map(|(arrival, sequence)| urgency(*arrival, sequence));
    last.max().map(|(_, _, arrival)| arrival)
}

/// The sequence that was admitted first, if that was at least `turn` ago. Never the oldest overdue one.
pub(crate) fn longest_turn<A>(
    running: &BTreeMap<Arrival, Sequence<A>>,
    turn: Duration,
    now: Instant,
) -> Option<Arrival> {
    let protected = oldest_overdue(running);
    let ended = running.iter().filter(|(arrival, sequence)| {
        Some(**arrival) != protected && now.saturating_duration_since(sequence.admitted) >= turn
    });
    let longest = ended.min_by_key(|(_, sequence)| sequence.admitted);
    longest.map(|(arrival, _)| *arrival)
}

/// The victim of the first of these clients that has one.
pub(crate) fn victim_of<A>(
    running: &BTreeMap<Arrival, Sequence<A>>,
    clients: &[ClientId],
) -> Option<Arrival> {
    let mut victims = clients
        .iter()
        .filter_map(|client| victim(running, |_, sequence| sequence.client_id() == *client));
    victims.next()
}

pub(crate) fn oldest_overdue<A>(running: &BTreeMap<Arrival, Sequence<A>>) -> Option<Arrival> {
    let oldest = running.iter().find(|(_, sequence)| sequence.overdue);
    oldest.map(|(arrival, _)| *arrival)
}
