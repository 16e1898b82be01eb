//! Several answers to one prompt. The first computes it; the others start when its first token is there, and find its blocks in
//! the prefix cache. Their places in the queue are taken together, so that all are taken or none.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use engine::{Event, FinishReason, Handle, Lease, Request, Seat, Sink, SubmitError, Ticket};

/// Dropped, they cancel every answer of a request, those that have not started too.
#[derive(Debug)]
pub struct Tickets(Arc<Mutex<Held>>);

#[derive(Debug, Default)]
struct Held {
    tickets: Vec<Ticket>,
    gone: bool,
}

impl Drop for Tickets {
    fn drop(&mut self) {
        let mut held = lock(&self.0);
        held.gone = true;
        held.tickets.clear();
    }
}

fn lock(held: &Mutex<Held>) -> MutexGuard<'_, Held> {
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Submits `request` once for each seat, with the sink and the seed of each answer's number; `leases` are held until then.
pub(super) fn submit(
    engine: &Handle<model::Adapter>,
    seats: Vec<Seat>,
    request: &Request,
    leases: Vec<Lease<model::Adapter>>,
    mut sink: impl FnMut(usize) -> Sink,
) -> Result<Tickets, SubmitError> {
    let held = Arc::new(Mutex::new(Held::default()));
    let mut choices = seats.into_iter().enumerate().map(|(choice, seat)| {
        let mut request = request.clone();
        request.sampling.seed = request.sampling.seed.map(|seed| nth_seed(seed, choice));
        Choice {
            seat,
            request,
            sink: sink(choice),
        }
    });
    let Some(mut first) = choices.next() else {
        return Ok(Tickets(held));
    };
    let followers: Vec<Choice> = choices.collect();
    if !followers.is_empty() {
        let mut followers = Some(Followers {
            engine: engine.clone(),
            choices: followers,
            _leases: leases,
            held: Arc::clone(&held),
        });
        let mut own = first.sink;
        first.sink = Box::new(move |event| {
            // What is told of the prompt comes while it is computed.
            if !matches!(event, Event::Prompt(_))
                && let Some(followers) = followers.take()
            {
                followers.start(&event);
            }
            own(event)
        });
    }
    let ticket = engine.submit_from(first.seat, first.request, first.sink)?;
    let mut inner = lock(&held);
    inner.tickets.push(ticket);
    drop(inner);
    Ok(Tickets(held))
}

/// An answer that is not submitted yet.
struct Choice {
    seat: Seat,
    request: Request,
    sink: Sink,
}

/// What waits for the first token of the first answer, in its sink.
struct Followers {
    engine: Handle<model::Adapter>,
    choices: Vec<Choice>,
    _leases: Vec<Lease<model::Adapter>>,
    held: Arc<Mutex<Held>>,
}

impl Followers {
    /// Submits them after the first answer's first event; where that one failed or was given up, so are they.
    fn start(self, event: &Event) {
        let failed = matches!(
            event,
            Event::Finished(end)
                if matches!(end.reason, FinishReason::Cancelled | FinishReason::Error(_))
        );
        for mut choice in self.choices {
            let mut held = lock(&self.held);
            if failed || held.gone {
                drop(held);
                if let Event::Finished(_) = event {
                    (choice.sink)(event.clone());
                }
                continue;
            }
            // Only an engine that ends refuses; the sink is dropped then, which its reader sees.
            if let Ok(ticket) = self
                .engine
                .submit_from(choice.seat, choice.request, choice.sink)
            {
                held.tickets.push(ticket);
            }
        }
    }
}

/// The seed of an answer by its number: the request's own for the first, and from there one far from the other (SplitMix64's
/// step and mixing).
fn nth_seed(seed: u64, choice: usize) -> u64 {
    if choice == 0 {
        return seed;
    }
    let z = seed.wrapping_add((choice as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_of_answers_differ_and_the_first_is_the_requests_own() {
        let seeds: Vec<u64> = (0..8).map(|choice| nth_seed(7, choice)).collect();
        assert_eq!(seeds[0], 7);
        for (i, seed) in seeds.iter().enumerate() {
            assert!(!seeds[i + 1..].contains(seed));
        }
        assert_ne!(nth_seed(7, 1), nth_seed(8, 1));
    }
}
