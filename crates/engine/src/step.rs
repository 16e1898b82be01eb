//! The engine's main loop, on its own thread. Knows the model as a [`Runner`], and its callers as a channel of commands and
//! one response sink for each request.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvError, TryRecvError};
use std::time::{Duration, Instant};

use crate::event::FinishReason;
use crate::logits::Logits;
use crate::output::OutputProcessor;
use crate::plan::Plan;
use crate::runner::{Limits, Runner};
use crate::scheduler::Scheduler;
use crate::sequence::Sequence;
use crate::stats::{SharedStats, Stats};

/// What handles send to the engine's thread.
pub(crate) enum Command<A> {
    Submit(Box<Sequence<A>>),
    /// Check `stop`.
    Wake,
}

/// Everything that the engine's thread owns.
pub(crate) struct EngineLoop<R: Runner> {
    pub runner: R,
    pub limits: Limits,
    pub scheduler: Scheduler<R::Adapter>,
    pub commands: Receiver<Command<R::Adapter>>,
    pub stop: Arc<AtomicBool>,
    pub stats: Arc<SharedStats>,
    pub outputs: OutputProcessor,
    pub logits: Logits,
    /// When a request last ended.
    pub last_finish: Option<Instant>,
}

impl<R: Runner> EngineLoop<R> {
    /// Runs steps until a shutdown or until no handle is left; then ends the requests under way as cancelled.
    pub fn run(mut self) {
        while self.drain_commands() {
            let now = Instant::now();
            self.finish_cancelled_and_expired(now);
            let plan = self.schedule(now);
            let outcome = self.run_model(&plan);
            self.process_outputs(plan, outcome);
        }
        self.cancel_all();
    }

    /// Takes the commands that handles sent; blocks if there is nothing to run. Returns false at the end.
    fn drain_commands(&mut self) -> bool {
        if self.scheduler.is_idle() {
            // A pause must not count in the interval between the ends of requests.
            self.last_finish = None;
            match self.commands.recv() {
                Ok(command) => self.execute(command),
                Err(RecvError) => return false,
            }
        }
        loop {
            match self.commands.try_recv() {
                Ok(command) => self.execute(command),
                Err(TryRecvError::Empty) => return !self.stop.load(Ordering::Acquire),
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn execute(&mut self, command: Command<R::Adapter>) {
        match command {
            Command::Submit(sequence) => self.scheduler.enqueue(*sequence),
            Command::Wake => {}
        }
    }

    fn finish_cancelled_and_expired(&mut self, now: Instant) {
        for sequence in self.scheduler.take_if(Sequence::is_cancelled) {
            self.finish(sequence, FinishReason::Cancelled);
        }
        let expired = |sequence: &Sequence<R::Adapter>| sequence.is_past_deadline(now);
        for sequence in self.scheduler.take_if(expired) {
            self.finish(sequence, FinishReason::Deadline);
        }
    }

    fn schedule(&mut self, now: Instant) -> Plan<R::Adapter> {
        let plan = self.scheduler.plan(now);
        debug_assert!(
            plan.batch.rows() > 0 || self.scheduler.is_idle(),
            "a plan without rows"
        );
        self.publish_stats(&mut self.stats.lock());
        plan
    }

    /// Runs the batch. A panic of the model counts as an error.
    fn run_model(&mut self, plan: &Plan<R::Adapter>) -> Result<(), String> {
        let batch = &plan.batch;
        if batch.rows() == 0 {
            return Ok(());
        }
        let started = Instant::now();
        let run = AssertUnwindSafe(|| self.runner.run(batch, &mut self.logits));
        let outcome = catch_unwind(run).unwrap_or_else(|panic| Err(panic_message(&*panic)));
        let took = started.elapsed();
        self.count_step(plan, took);
        self.scheduler.observe_step(batch.rows(), took);
        outcome?;
        let rows = batch.logit_rows.len();
        self.logits.check(rows, self.limits.vocab_size)
    }

    /// For each sequence of the step: samples its next tokens, emits them, and finishes it at its end. A step that failed
    /// ends all of its sequences.
    fn process_outputs(&mut self, plan: Plan<R::Adapter>, outcome: Result<(), String>) {
        let Plan {
            batch,
            mut sequences,
            ..
        } = plan;
        // The batch holds adapters, which must be free when the end of their last request is emitted.
        drop(batch);
        // Slow grammars come last, so that they do not delay the other tokens of this step.
        sequences.sort_by_key(|planned| self.scheduler.grammar_time(planned.sequence));
        for planned in sequences {
            let end = match &outcome {
                Ok(()) => self.scheduler.get(planned.sequence).and_then(|sequence| {
                    self.outputs
                        .process(sequence, &planned, &self.logits, &self.stats)
                }),
                Err(message) => Some(FinishReason::Error(message.clone())),
            };
            self.scheduler.charge_grammar(planned.sequence);
            if let Some(reason) = end
                && let Some(sequence) = self.scheduler.take(planned.sequence)
            {
                self.finish(sequence, reason);
            }
        }
    }

    /// Releases what a sequence held and counts its end; emits the end only then.
    fn finish(&mut self, sequence: Sequence<R::Adapter>, reason: FinishReason) {
        let response = sequence.into_response();
        let now = Instant::now();
        let interval = self.last_finish.replace(now).map(|last| now - last);
        let mut stats = self.stats.lock();
        self.publish_stats(&mut stats);
        if let Some(interval) = interval {
            stats.count_interval(interval);
        }
        stats.count_finished(&reason);
        drop(stats);
        response.finish(reason);
    }

    fn cancel_all(&mut self) {
        // From here on a submit fails, or its sequence ends as cancelled when the channel is dropped.
        self.stop.store(true, Ordering::Release);
        while let Ok(command) = self.commands.try_recv() {
            self.execute(command);
        }
        for sequence in self.scheduler.take_if(|_| true) {
            self.finish(sequence, FinishReason::Cancelled);
        }
    }

    fn count_step(&self, plan: &Plan<R::Adapter>, took: Duration) {
        let batch = &plan.batch;
        let sampled = batch.logit_rows.len() - plan.prompt_logprob_rows;
        let mut stats = self.stats.lock();
        stats.steps += 1;
        stats.rows += batch.rows() as u64;
        stats.prefill_rows += (batch.rows() - sampled) as u64;
        stats.model_time += took;
    }

    /// Writes what the engine holds now into `stats`.
    pub fn publish_stats(&self, stats: &mut Stats) {
        stats.running = self.scheduler.running();
        stats.waiting = self.scheduler.waiting();
        stats.blocks = self.scheduler.blocks().blocks();
        stats.free_blocks = self.scheduler.blocks().free();
        stats.preemptions = self.scheduler.preemptions();
        stats.cached_blocks = self.scheduler.blocks().cached();
        stats.cached_tokens = self.scheduler.cached_tokens();
        stats.cache_evictions = self.scheduler.blocks().evictions();
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned());
    format!(
        "the model panicked: {}",
        text.as_deref().unwrap_or("no message")
    )
}
