//! Shadow versions: their answers are compared with those that clients got, and never returned. Requests for them wait here.

use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use registry::PersonaRef;

use crate::model_identity::ModelIdentity;
use crate::request::GenerateRequest;

/// The most comparisons that wait; further ones are skipped.
const MAX_WAITING: usize = 64;

/// Counts comparisons, and queues them.
#[derive(Debug, Default)]
pub struct Shadows {
    /// Set once a thread compares.
    queue: OnceLock<SyncSender<ShadowRequest>>,
    outcomes: Outcomes,
}

/// The number of comparisons by persona and outcome.
#[derive(Debug, Default, Clone)]
pub(crate) struct Outcomes(Family<Outcome, Counter>);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    persona: String,
    outcome: String,
}

/// An answer that a client got, and the request that gets the shadow's answer.
#[derive(Debug)]
pub(crate) struct ShadowRequest {
    pub request: GenerateRequest,
    pub identity: ModelIdentity,
    pub shadow: PersonaRef,
    /// The persona's label in metrics.
    pub label: String,
    pub answer: String,
}

impl Shadows {
    /// Adds the counter to a registry.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "lory_shadow_requests",
            "Answers that a shadow version was to give too, by persona and outcome",
            self.outcomes.0.clone(),
        );
    }

    /// Opens the queue; none if it is open already.
    pub(crate) fn open(&self) -> Option<Receiver<ShadowRequest>> {
        let (sender, requests) = sync_channel(MAX_WAITING);
        self.queue.set(sender).ok().map(|()| requests)
    }

    /// The queue; none before it is open.
    pub(crate) fn queue(&self) -> Option<SyncSender<ShadowRequest>> {
        self.queue.get().cloned()
    }

    pub(crate) fn outcomes(&self) -> &Outcomes {
        &self.outcomes
    }
}

impl Outcomes {
    pub fn count(&self, persona: &str, outcome: &str) {
        let label = Outcome {
            persona: persona.to_owned(),
            outcome: outcome.to_owned(),
        };
        self.0.get_or_create(&label).inc();
    }
}
