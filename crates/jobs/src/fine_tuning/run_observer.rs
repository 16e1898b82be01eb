//! Observes a run: writes its events and updates its progress.

use std::path::Path;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};

use train::progress::{Observer, ReferenceProgress, RunPlan, Snapshot, StepMetrics, Validation};

use crate::fine_tuning::events::EventLog;
use crate::fine_tuning::sample_generation::SampleGenerator;
use crate::jobs_state::JobsState;
use crate::record_file::now;
use crate::records::client_message::ClientMessage;
use crate::records::job::Metrics;

/// Observes the run of one job, which trains one adapter.
pub(crate) struct RunObserver<'q> {
    queue: &'q JobsState,
    id: &'q str,
    events: EventLog,
    steps: u64,
    /// Samples answers during the run; `None` if there are no questions.
    sampling: Option<SampleGenerator<'q>>,
    /// Ends the run.
    stop: &'q AtomicBool,
}

impl<'q> RunObserver<'q> {
    pub fn new(
        queue: &'q JobsState,
        id: &'q str,
        sampling: Option<SampleGenerator<'q>>,
        stop: &'q AtomicBool,
    ) -> RunObserver<'q> {
        RunObserver {
            queue,
            id,
            events: queue.event_log(id),
            steps: 0,
            sampling,
            stop,
        }
    }
}

impl Observer for RunObserver<'_> {
    fn started(&mut self, plan: &RunPlan, resumed: Option<u64>) {
        self.steps = plan.steps;
        let step = resumed.unwrap_or(0);
        if let Err(error) = self.events.truncate_after(step) {
            tracing::error!("job {}: {error}", self.id);
        }
        match resumed {
            None => self.events.push("info", "Fine-tuning job started", None),
            Some(step) => self.events.push(
                "info",
                self.queue.client_message(&format!(
                    "Fine-tuning resumed at step {step} of {}",
                    plan.steps
                )),
                None,
            ),
        }
        self.queue.update_progress(self.id, |progress| {
            progress.step = step;
            progress.steps = plan.steps;
            progress.phase = None;
        });
        let sampling = self.sampling.as_mut();
        if let Some(Err(error)) = sampling.map(|sampling| sampling.started(plan, step)) {
            self.sampling = None;
            let message = format!("Samples are off for this run: {error}");
            let message = self.queue.client_message(&message);
            self.events.push("warn", message, None);
        }
    }

    fn reference(&mut self, _adapter: usize, pairs: usize, from: ReferenceProgress<'_>) {
        if let ReferenceProgress::Computing { done: 0 } = from {
            let message = format!("Computing reference log-probabilities of {pairs} pairs");
            let message = self.queue.client_message(&message);
            self.events.push("info", message, None);
        }
    }

    fn step(&mut self, metrics: &StepMetrics) {
        // The run cannot store its adapter any more.
        if self.queue.folder.check().is_err() {
            self.stop.store(true, Ordering::SeqCst);
            return;
        }
        self.queue
            .trained_tokens
            .fetch_add(metrics.tokens as u64, Ordering::Relaxed);
        let speed = self.queue.tokens_per_s.lock();
        *speed.unwrap_or_else(PoisonError::into_inner) = Some(metrics.tokens_per_s);
        // A job trains one adapter.
        let Some(adapter) = metrics.adapters.first() else {
            return;
        };
        let data = Metrics {
            step: metrics.step,
            total_steps: metrics.steps,
            epoch: adapter.epoch,
            train_loss: Some(adapter.loss),
            learning_rate: Some(adapter.lr),
            grad_norm: Some(adapter.grad_norm),
            tokens: Some(metrics.tokens as u64),
            preference_accuracy: adapter.preference.map(|pairs| pairs.accuracy),
            ..Metrics::default()
        };
        let (step, steps) = (metrics.step, metrics.steps);
        let message = ClientMessage::of_step(step, steps, "training loss", adapter.loss, "");
        self.events.push("info", message, Some(data));
        self.queue.update_progress(self.id, |progress| {
            progress.step = metrics.step;
            progress.steps = metrics.steps;
            progress.train_loss = Some(adapter.loss);
            progress.tokens_per_s = Some(metrics.tokens_per_s);
            progress.estimated_finish = Some(now().saturating_add(metrics.eta.as_secs()));
        });
    }

    fn validated(&mut self, _adapter: usize, validation: &Validation) {
        if let Some(sampling) = &mut self.sampling {
            sampling.validated(validation.step);
        }
        let data = Metrics {
            step: validation.step,
            total_steps: self.steps,
            epoch: validation.epoch,
            full_valid_loss: Some(validation.loss),
            best: Some(validation.best),
            preference_accuracy: validation.preference.map(|pairs| pairs.accuracy),
            ..Metrics::default()
        };
        let best = if validation.best {
            ", the best so far"
        } else {
            ""
        };
        let (step, loss) = (validation.step, validation.loss);
        let message = ClientMessage::of_step(step, self.steps, "full validation loss", loss, best);
        self.events.push("info", message, Some(data));
        if validation.best {
            self.queue.update_progress(self.id, |progress| {
                progress.best_validation_loss = Some(validation.loss);
            });
        }
    }

    fn stopped_early(&mut self, _adapter: usize, step: u64) {
        let message = format!("No improvement within the patience: training ends at step {step}");
        let message = self.queue.client_message(&message);
        self.events.push("info", message, None);
    }

    fn snapshot(&mut self, snapshot: &Snapshot<'_>) {
        let due = |sampling: &&mut SampleGenerator<'_>| sampling.is_due(snapshot);
        let Some(sampling) = self.sampling.as_mut().filter(due) else {
            return;
        };
        let id = self.id;
        let phase = |phase: Option<&str>| {
            let phase = phase.map(str::to_owned);
            self.queue
                .update_progress(id, |progress| progress.phase = phase);
        };
        phase(Some("sampling"));
        if let Err(error) = sampling.sample(snapshot) {
            let message = format!("Sampling after step {} failed: {error}", snapshot.step);
            let message = self.queue.client_message(&message);
            self.events.push("warn", message, None);
        }
        phase(None);
    }

    fn checkpointed(&mut self, _path: &Path, step: u64) {
        tracing::debug!(job = self.id, step, "checkpoint");
    }
}
