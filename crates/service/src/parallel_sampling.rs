//! Several answers to one prompt (`n` in the OpenAI API). The first answer computes the prompt; the others start at its first
//! token and find the prompt in the prefix cache. Their permits are acquired together, so that all are queued or none.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use engine::{Event, FinishReason, Handle, Lease, Permit, Request, Sink, SubmitError, Ticket};
use rand_xoshiro::SplitMix64;
use rand_xoshiro::rand_core::{Rng as _, SeedableRng as _};

/// Dropping them cancels every answer of a request, including those that have not started.
#[derive(Debug)]
pub struct Tickets(Arc<Mutex<TicketState>>);

#[derive(Debug, Default)]
struct TicketState {
    tickets: Vec<Ticket>,
    gone: bool,
}

impl Drop for Tickets {
    fn drop(&mut self) {
        let mut state = lock(&self.0);
        state.gone = true;
        state.tickets.clear();
    }
}

fn lock(state: &Mutex<TicketState>) -> MutexGuard<'_, TicketState> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Submits `request` once for each permit, with the sink and the seed of each answer's number; `leases` are held until then.
pub(super) fn submit(
    engine: &Handle<model::Adapter>,
    permits: Vec<Permit>,
    request: &Request,
    leases: Vec<Lease<model::Adapter>>,
    mut sink: impl FnMut(usize) -> Sink,
) -> Result<Tickets, SubmitError> {
    let state = Arc::new(Mutex::new(TicketState::default()));
    let mut choices = permits.into_iter().enumerate().map(|(choice, permit)| {
        let mut request = request.clone();
        request.sampling.seed = request.sampling.seed.map(|seed| nth_seed(seed, choice));
        Choice {
            permit,
            request,
            sink: sink(choice),
        }
    });
    let Some(mut first) = choices.next() else {
        return Ok(Tickets(state));
    };
    let followers: Vec<Choice> = choices.collect();
    if !followers.is_empty() {
        let mut followers = Some(Followers {
            engine: engine.clone(),
            choices: followers,
            _leases: leases,
            state: Arc::clone(&state),
        });
        let mut own = first.sink;
        first.sink = Box::new(move |event| {
            // Prompt events come while the prompt is computed.
            if !matches!(event, Event::Prompt(_))
                && let Some(followers) = followers.take()
            {
                followers.start(&event);
            }
            own(event)
        });
    }
    let ticket = engine.submit_with_permit(first.permit, first.request, first.sink)?;
    let mut inner = lock(&state);
    inner.tickets.push(ticket);
    drop(inner);
    Ok(Tickets(state))
}

/// An answer that is not submitted yet.
struct Choice {
    permit: Permit,
    request: Request,
    sink: Sink,
}

/// The answers that wait for the first token of the first one, held by its sink.
struct Followers {
    engine: Handle<model::Adapter>,
    choices: Vec<Choice>,
    _leases: Vec<Lease<model::Adapter>>,
    state: Arc<Mutex<TicketState>>,
}

impl Followers {
    /// Submits them after the first answer's first event. If the first failed or was cancelled, so are they.
    fn start(self, event: &Event) {
        let failed = matches!(
            event,
            Event::Finished(end)
                if matches!(end.reason, FinishReason::Cancelled | FinishReason::Constraint(_) | FinishReason::Error(_))
        );
        for mut choice in self.choices {
            let mut state = lock(&self.state);
            if failed || state.gone {
                drop(state);
                if let Event::Finished(_) = event {
                    (choice.sink)(event.clone());
                }
                continue;
            }
            // Only an engine that shuts down refuses; the reader then sees the dropped sink.
            if let Ok(ticket) =
                self.engine
                    .submit_with_permit(choice.permit, choice.request, choice.sink)
            {
                state.tickets.push(ticket);
            }
        }
    }
}

/// The seed of choice number `choice`: the request's seed for the first, then the SplitMix64 sequence that starts from it.
fn nth_seed(seed: u64, choice: usize) -> u64 {
    let mut random = SplitMix64::seed_from_u64(seed);
    (0..choice).fold(seed, |_, _| random.next_u64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_of_answers_differ_and_the_first_is_that_of_the_request() {
        let seeds: Vec<u64> = (0..8).map(|choice| nth_seed(7, choice)).collect();
        assert_eq!(seeds[0], 7);
        for (i, seed) in seeds.iter().enumerate() {
            assert!(!seeds[i + 1..].contains(seed));
        }
        assert_ne!(nth_seed(7, 1), nth_seed(8, 1));
    }

    /// A request with a seed gives the same choices in every release.
    #[test]
    fn seeds_of_choices_are_stable() {
        assert_eq!(
            [1, 2, 3].map(|choice| nth_seed(7, choice)),
            [
                0x63cb_e1e4_5932_0dd7,
                0x044c_3cd7_f43c_661c,
                0xe698_4080_bab1_2a02,
            ]
        );
        assert_eq!(nth_seed(u64::MAX, 127), 0xc257_4768_9aa5_6714);
    }
}
