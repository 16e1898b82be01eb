//! The metrics of requests: outcomes, tokens and times. The engine's stats are in [`engine::Stats`].
//!
//! Every label has a limited number of values: the first [`MAX_PERSONAS`] personas that are requested have one each, the others
//! share [`OTHER`], and blends share [`BLEND`].

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use engine::{Event, FinishReason};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::error::RequestError;
use crate::model_identity::ModelIdentity;
use crate::request_log::RequestLog;
use auth::{AuthError, TokenReservation};

/// The most personas that have their own label.
pub const MAX_PERSONAS: usize = 100;
/// The label of all other personas.
pub const OTHER: &str = "other";
/// The label of blends, whose names clients make up.
pub const BLEND: &str = "blend";
/// The label of requests that were refused before their persona was resolved.
pub const NONE: &str = "none";

/// Buckets for first tokens and whole answers, in seconds.
const LONG: [f64; 14] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
];
/// Buckets for inter-token times, in seconds.
const SHORT: [f64; 12] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0,
];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    persona: String,
    outcome: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Persona {
    persona: String,
}

/// The service's counters and histograms.
#[derive(Debug)]
pub struct RequestMetrics {
    requests: Family<Outcome, Counter>,
    prompt_tokens: Family<Persona, Counter>,
    completion_tokens: Family<Persona, Counter>,
    queue: Histogram,
    first_token: Histogram,
    inter_token: Histogram,
    total: Histogram,
    personas: Mutex<HashSet<String>>,
}

impl Default for RequestMetrics {
    fn default() -> Self {
        RequestMetrics {
            requests: Family::default(),
            prompt_tokens: Family::default(),
            completion_tokens: Family::default(),
            queue: Histogram::new(LONG),
            first_token: Histogram::new(LONG),
            inter_token: Histogram::new(SHORT),
            total: Histogram::new(LONG),
            personas: Mutex::default(),
        }
    }
}

impl RequestMetrics {
    /// Adds the metrics to a registry.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "lory_requests",
            "Requests that ended, by persona and outcome",
            self.requests.clone(),
        );
        registry.register(
            "lory_prompt_tokens",
            "Tokens of prompts, cached ones included",
            self.prompt_tokens.clone(),
        );
        registry.register(
            "lory_completion_tokens",
            "Tokens sampled",
            self.completion_tokens.clone(),
        );
        for (name, help, histogram) in [
            (
                "lory_queue_time",
                "From a request's arrival until it was taken up",
                &self.queue,
            ),
            (
                "lory_time_to_first_token",
                "From a request's arrival to its first token",
                &self.first_token,
            ),
            (
                "lory_inter_token_time",
                "From one token of an answer to the next",
                &self.inter_token,
            ),
            (
                "lory_request_time",
                "From a request's arrival to its end",
                &self.total,
            ),
        ] {
            registry.register_with_unit(name, help, Unit::Seconds, histogram.clone());
        }
    }

    /// Counts a request that was refused; `identity` if it was resolved.
    pub(super) fn refused(
        &self,
        identity: Option<&ModelIdentity>,
        log: Option<&RequestLog>,
        error: &RequestError,
    ) {
        let outcome = match error {
            RequestError::QueueFull { .. } | RequestError::GrammarsBusy => "queue_full",
            RequestError::Timeout => "timeout",
            RequestError::ClientGone => "cancelled",
            RequestError::Adapter { .. }
            | RequestError::Failed(_)
            | RequestError::DeviceFailed(_) => "error",
            RequestError::Stopped => "stopped",
            RequestError::Denied { source, .. } => match source {
                AuthError::RequestRateExceeded { .. }
                | AuthError::AnswerRateExceeded { .. }
                | AuthError::TokenRateExceeded { .. } => "over_rate",
                AuthError::AnswersAboveTokenLimit { .. } => "refused",
                _ => "denied",
            },
            _ => "refused",
        };
        if let Some(log) = log {
            if let Some(identity) = identity {
                log.resolved(identity);
            }
            log.update(|entry| entry.outcome = Some(outcome));
        }
        let persona = identity.map_or_else(|| NONE.to_owned(), |identity| self.label(identity));
        self.count(persona, outcome);
    }

    /// The recorder of a request that arrived at `arrival`.
    pub(super) fn recorder(
        self: &Arc<Self>,
        identity: &ModelIdentity,
        arrival: Instant,
    ) -> RequestRecorder {
        RequestRecorder {
            metrics: Arc::clone(self),
            persona: self.label(identity),
            log: None,
            reservation: TokenReservation::default(),
            first: true,
            arrival,
            last_token: None,
        }
    }

    fn count(&self, persona: String, outcome: &str) {
        let outcome = outcome.to_owned();
        self.requests
            .get_or_create(&Outcome { persona, outcome })
            .inc();
    }

    pub(super) fn label(&self, identity: &ModelIdentity) -> String {
        if identity.is_blend() {
            return BLEND.to_owned();
        }
        let personas = self.personas.lock();
        let mut personas = personas.unwrap_or_else(PoisonError::into_inner);
        let name = &identity.name;
        if personas.len() < MAX_PERSONAS {
            personas.insert(name.clone());
        }
        let known = personas.contains(name);
        if known { name } else { OTHER }.to_owned()
    }
}

/// Records one answer on the engine's thread.
pub(super) struct RequestRecorder {
    metrics: Arc<RequestMetrics>,
    persona: String,
    log: Option<Arc<RequestLog>>,
    reservation: TokenReservation,
    /// Whether it is the first answer to its prompt; the prompt's tokens are counted once.
    first: bool,
    arrival: Instant,
    last_token: Option<Instant>,
}

impl RequestRecorder {
    /// Records into the request log too, and returns the caller's unused tokens.
    pub fn for_caller(
        mut self,
        log: Option<Arc<RequestLog>>,
        reservation: TokenReservation,
        first: bool,
    ) -> RequestRecorder {
        self.log = log;
        self.reservation = reservation;
        self.first = first;
        self
    }

    /// Records an event. `stopped`: a stop string ended the answer, which the engine reports as cancelled.
    pub fn observe(&mut self, event: &Event, stopped: bool) {
        let metrics = &self.metrics;
        match event {
            Event::Prompt(_) => {}
            Event::Token(_) => {
                let now = Instant::now();
                match self.last_token.replace(now) {
                    None => metrics
                        .first_token
                        .observe((now - self.arrival).as_secs_f64()),
                    Some(last) => metrics.inter_token.observe((now - last).as_secs_f64()),
                }
            }
            Event::Finished(end) => {
                let outcome = match end.reason {
                    _ if stopped => "stop",
                    FinishReason::Stop => "stop",
                    FinishReason::Length => "length",
                    FinishReason::Deadline => "timeout",
                    FinishReason::Cancelled => "cancelled",
                    FinishReason::Constraint(_) => "refused",
                    FinishReason::Error(_) => "error",
                };
                let prompt = if self.first { end.prompt_tokens } else { 0 };
                self.reservation
                    .used((prompt + end.completion_tokens) as u64);
                if let Some(log) = &self.log {
                    log.finished(outcome, end, self.first);
                }
                metrics.count(self.persona.clone(), outcome);
                let persona = Persona {
                    persona: self.persona.clone(),
                };
                metrics
                    .prompt_tokens
                    .get_or_create(&persona)
                    .inc_by(end.prompt_tokens as u64);
                metrics
                    .completion_tokens
                    .get_or_create(&persona)
                    .inc_by(end.completion_tokens as u64);
                metrics.queue.observe(end.timings.queue.as_secs_f64());
                metrics.total.observe(self.arrival.elapsed().as_secs_f64());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(name: &str, version: Option<u32>, adapters: usize) -> ModelIdentity {
        let one = crate::model_identity::AdapterUse {
            id: engine::AdapterId([1; 32]),
            scale: 1.0,
        };
        ModelIdentity {
            base: "tiny".to_owned(),
            name: name.to_owned(),
            version,
            adapters: vec![one; adapters],
        }
    }

    #[test]
    fn number_of_labels_is_limited() {
        let metrics = RequestMetrics::default();
        for n in 0..3 * MAX_PERSONAS {
            metrics.count(
                metrics.label(&identity(&format!("p{n}"), Some(1), 1)),
                "stop",
            );
            let blend = identity(&format!("p1*0.{n}+p2"), None, 2);
            metrics.count(metrics.label(&blend), "stop");
        }
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let series = text
            .lines()
            .filter(|l| l.starts_with("lory_requests_total{"));
        assert_eq!(series.count(), MAX_PERSONAS + 2);
        assert_eq!(metrics.label(&identity("p3", Some(1), 1)), "p3");
        assert_eq!(metrics.label(&identity("p299", Some(1), 1)), OTHER);
        assert_eq!(metrics.label(&identity("a+b", None, 2)), BLEND);
    }
}
