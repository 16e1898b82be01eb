//! Shadows: a version that answers a request too, after its client has its answer, only to be compared. One at a time, behind
//! everybody else, so that clients do not wait for what they never see.

use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, OnceLock, Weak};
use std::thread;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use registry::PersonaRef;

use crate::answer::{FinishReason, TextEvent, TextSink, ToolCallDelta};
use crate::caller::Caller;
use crate::error::RequestError;
use crate::persona_resolution::ModelIdentity;
use crate::request::GenerateRequest;
use crate::request_metrics::RequestMetrics;
use crate::service::Service;

/// How many comparisons may wait; one more is skipped.
const MAX_WAITING: usize = 64;

/// What is counted of comparisons, and where they wait.
#[derive(Debug, Default)]
pub struct Shadows {
    /// There once somebody compares.
    jobs: OnceLock<SyncSender<Job>>,
    outcomes: Family<Outcome, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    persona: String,
    outcome: String,
}

/// An answer that was given, and how to get another one.
#[derive(Debug)]
struct Job {
    request: GenerateRequest,
    identity: ModelIdentity,
    shadow: PersonaRef,
    label: String,
    answer: String,
}

impl Shadows {
    /// Adds the counter to a registry.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "lory_shadow_requests",
            "Answers that a shadow version was to give too, by persona and outcome",
            self.outcomes.clone(),
        );
    }

    fn count(&self, persona: &str, outcome: &str) {
        count(&self.outcomes, persona, outcome);
    }
}

fn count(outcomes: &Family<Outcome, Counter>, persona: &str, outcome: &str) {
    let label = Outcome {
        persona: persona.to_owned(),
        outcome: outcome.to_owned(),
    };
    outcomes.get_or_create(&label).inc();
}

impl Service {
    /// Lets shadows answer, on a thread of its own that ends with the service. Without this there are none.
    pub fn compare_shadows(self: &Arc<Self>) {
        let (sender, jobs) = sync_channel(MAX_WAITING);
        if self.shadows.jobs.set(sender).is_err() {
            return;
        }
        let service = Arc::downgrade(self);
        let spawned = thread::Builder::new()
            .name("lory-shadow".to_owned())
            .spawn(move || compare(&service, &jobs));
        if let Err(error) = spawned {
            tracing::error!("shadows do not answer: {error}");
        }
    }

    /// A sink that hands everything on and, when the answer is whole, has `shadow` answer too.
    pub(super) fn shadowed(
        &self,
        request: &GenerateRequest,
        identity: &ModelIdentity,
        shadow: &PersonaRef,
        mut sink: TextSink,
    ) -> TextSink {
        let Some(jobs) = self.shadows.jobs.get().cloned() else {
            return sink;
        };
        let outcomes = self.shadows.outcomes.clone();
        let label = self.metrics.label(identity);
        let mut job = Some(Job {
            request: GenerateRequest {
                persona: Some(shadow.to_string()),
                choices: 1,
                priority: i32::MAX,
                // It is the operator's, not the caller's: it counts against no key.
                caller: Caller::default(),
                ..request.clone()
            },
            identity: identity.clone(),
            shadow: shadow.clone(),
            label,
            answer: String::new(),
        });
        Box::new(move |event| {
            if let Some(job) = &mut job {
                tell(&event, &mut job.answer);
            }
            if let TextEvent::End(end) = &event
                // What was cut off says nothing about the other version.
                && matches!(end.reason, FinishReason::Stop | FinishReason::Length)
                && let Some(job) = job.take()
                && let Err(TrySendError::Full(job)) = jobs.try_send(job)
            {
                count(&outcomes, &job.label, "skipped");
            }
            sink(event)
        })
    }

    /// What was compared.
    pub fn shadows(&self) -> &Shadows {
        &self.shadows
    }
}

/// What an event says, calls of tools included.
fn tell(event: &TextEvent, told: &mut String) {
    match event {
        TextEvent::Delta(delta) => told.push_str(&delta.text),
        TextEvent::ToolCall(ToolCallDelta::Begin { name, .. }) => told.push_str(name),
        TextEvent::ToolCall(ToolCallDelta::Arguments { text, .. }) => told.push_str(text),
        TextEvent::End(_) => {}
    }
}

fn compare(service: &Weak<Service>, jobs: &Receiver<Job>) {
    // What shadows answer is not a client's.
    let uncounted = Arc::new(RequestMetrics::default());
    for job in jobs {
        let Some(service) = service.upgrade() else {
            return;
        };
        let Job {
            request,
            identity,
            shadow,
            label,
            answer,
        } = job;
        let persona = &identity.name;
        let current = identity.version.unwrap_or(0);
        match service.answer_of(&request, &uncounted) {
            Ok(other) => {
                let same = other == answer;
                service
                    .shadows
                    .count(&label, if same { "same" } else { "different" });
                let shared = answer
                    .chars()
                    .zip(other.chars())
                    .take_while(|(a, b)| a == b)
                    .count();
                tracing::info!(
                    persona,
                    current,
                    shadow = shadow.version,
                    same,
                    characters_alike = shared,
                    "shadow answered"
                );
            }
            Err(error) => {
                service.shadows.count(&label, "failed");
                tracing::warn!(
                    persona,
                    shadow = shadow.version,
                    "shadow did not answer: {error}"
                );
            }
        }
    }
}

impl Service {
    /// The text of an answer that is counted nowhere but in `meters`.
    fn answer_of(
        &self,
        request: &GenerateRequest,
        metrics: &Arc<RequestMetrics>,
    ) -> Result<String, RequestError> {
        let (sender, events) = std::sync::mpsc::channel();
        let mut sink = Some(Box::new(move |event| match sender.send(event) {
            Ok(()) => engine::Flow::Continue,
            Err(_) => engine::Flow::Stop,
        }) as TextSink);
        let mut one = |_| {
            sink.take()
                .unwrap_or_else(|| Box::new(|_| engine::Flow::Stop))
        };
        let gone = std::sync::atomic::AtomicBool::new(false);
        let _accepted = self.submit_with_metrics(request, &mut one, &gone, metrics)?;
        let mut told = String::new();
        for event in events {
            tell(&event, &mut told);
            if let TextEvent::End(end) = event {
                return end.check().map(|()| told);
            }
        }
        Err(RequestError::Stopped)
    }
}
