//! Runs shadow versions on a thread, one request at a time and at the lowest priority, so that clients do not wait for them.

use std::sync::mpsc::{Receiver, TrySendError};
use std::sync::{Arc, Weak};
use std::thread;

use registry::PersonaRef;

use super::Service;
use crate::answer::{FinishReason, TextEvent, TextSink, ToolCallDelta};
use crate::caller::Caller;
use crate::error::RequestError;
use crate::model_identity::ModelIdentity;
use crate::request::GenerateRequest;
use crate::request_metrics::RequestMetrics;
use crate::shadow::{ShadowRequest, Shadows};

impl Service {
    /// Starts the thread that runs shadow versions; it ends with the service. Without it there are no shadow answers.
    pub fn compare_shadows(self: &Arc<Self>) {
        let Some(requests) = self.shadows.open() else {
            return;
        };
        let service = Arc::downgrade(self);
        let spawned = thread::Builder::new()
            .name("lory-shadow".to_owned())
            .spawn(move || compare(&service, &requests));
        if let Err(error) = spawned {
            tracing::error!("shadow versions do not answer: {error}");
        }
    }

    /// A sink that passes every event on and, when the answer is complete, queues the request for `shadow`.
    pub(super) fn shadowed(
        &self,
        request: &GenerateRequest,
        identity: &ModelIdentity,
        shadow: &PersonaRef,
        mut sink: TextSink,
    ) -> TextSink {
        let Some(queue) = self.shadows.queue() else {
            return sink;
        };
        let outcomes = self.shadows.outcomes().clone();
        let mut waiting = Some(ShadowRequest {
            request: GenerateRequest {
                persona: Some(shadow.to_string()),
                choices: 1,
                priority: i32::MAX,
                // The operator wants the comparison, so it does not count against the caller's key.
                caller: Caller::default(),
                ..request.clone()
            },
            identity: identity.clone(),
            shadow: shadow.clone(),
            label: self.metrics.label(identity),
            answer: String::new(),
        });
        Box::new(move |event| {
            if let Some(waiting) = &mut waiting {
                append(&event, &mut waiting.answer);
            }
            if let TextEvent::End(end) = &event
                // An answer that was cut off cannot be compared.
                && matches!(end.reason, FinishReason::Stop | FinishReason::Length)
                && let Some(request) = waiting.take()
                && let Err(TrySendError::Full(request)) = queue.try_send(request)
            {
                outcomes.count(&request.label, "skipped");
            }
            sink(event)
        })
    }

    /// The comparisons with shadow versions.
    pub fn shadows(&self) -> &Shadows {
        &self.shadows
    }

    /// The text of an answer that is counted only in `metrics`.
    fn shadow_answer(
        &self,
        request: &GenerateRequest,
        metrics: &Arc<RequestMetrics>,
    ) -> Result<String, RequestError> {
        let (sender, events) = std::sync::mpsc::channel();
        let mut sink = Some(super::submit::channel_sink(sender));
        let mut first = super::submit::first_only(&mut sink);
        let gone = std::sync::atomic::AtomicBool::new(false);
        let _queued = self.submit_with_metrics(
            std::slice::from_ref(request),
            &mut |_, choice| first(choice),
            &gone,
            &|| {},
            metrics,
        )?;
        let mut answer = String::new();
        for event in events {
            append(&event, &mut answer);
            if let TextEvent::End(end) = event {
                return end.check().map(|()| answer);
            }
        }
        Err(RequestError::Stopped)
    }
}

/// Appends the text of an event, and its tool calls.
fn append(event: &TextEvent, answer: &mut String) {
    match event {
        TextEvent::Delta(delta) => answer.push_str(&delta.text),
        TextEvent::ToolCall(ToolCallDelta::Begin { name, .. }) => answer.push_str(name),
        TextEvent::ToolCall(ToolCallDelta::Arguments { text, .. }) => answer.push_str(text),
        TextEvent::End(_) => {}
    }
}

fn compare(service: &Weak<Service>, requests: &Receiver<ShadowRequest>) {
    // Shadow answers must not change the metrics of client requests.
    let metrics = Arc::new(RequestMetrics::default());
    for request in requests {
        let Some(service) = service.upgrade() else {
            return;
        };
        let ShadowRequest {
            request,
            identity,
            shadow,
            label,
            answer,
        } = request;
        let persona = &identity.name;
        let current = identity.version.unwrap_or(0);
        let outcomes = service.shadows.outcomes();
        match service.shadow_answer(&request, &metrics) {
            Ok(other) => {
                let same = other == answer;
                outcomes.count(&label, if same { "same" } else { "different" });
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
                outcomes.count(&label, "failed");
                tracing::warn!(
                    persona,
                    shadow = shadow.version,
                    "shadow did not answer: {error}"
                );
            }
        }
    }
}
