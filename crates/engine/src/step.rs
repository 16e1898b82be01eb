//! The engine's main loop, on its own thread: drain, schedule, run, sample, emit. Knows the model as a [`Runner`] and its
//! callers as a channel of commands and one outlet for each request.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvError, TryRecvError};
use std::time::{Duration, Instant};

use crate::constraint::Progress;
use crate::event::{FinishReason, Flow, Token};
use crate::plan::{Part, Plan};
use crate::runner::{Limits, Runner};
use crate::sampler::{DrawError, Sampler};
use crate::scheduler::Scheduler;
use crate::sequence::Sequence;
use crate::stats::{Board, Stats};

/// What handles ask of the engine's thread.
pub(crate) enum Command<A> {
    Submit(Box<Sequence<A>>),
    /// Look at `stop`.
    Wake,
}

/// Everything that the engine's thread owns.
pub(crate) struct EngineLoop<R: Runner> {
    pub runner: R,
    pub limits: Limits,
    pub scheduler: Scheduler<R::Adapter>,
    pub commands: Receiver<Command<R::Adapter>>,
    pub stop: Arc<AtomicBool>,
    pub board: Arc<Board>,
    pub sampler: Sampler,
    pub logits: Vec<f32>,
    /// What the constraint of the sequence in hand allows, a bit for each token.
    pub mask: Vec<u32>,
    /// When a request last ended.
    pub last_end: Option<Instant>,
}

impl<R: Runner> EngineLoop<R> {
    /// Steps until it is told to stop or no handle is left; then ends what is under way as cancelled.
    pub fn run(mut self) {
        while self.drain() {
            let now = Instant::now();
            self.drop_ended(now);
            let plan = self.schedule(now);
            let outcome = self.forward(&plan);
            self.speak(plan, outcome);
        }
        self.cancel_all();
    }

    /// Takes in what handles sent; waits for something to do if there is nothing. False: the end.
    fn drain(&mut self) -> bool {
        if self.scheduler.is_idle() {
            // A rest says nothing of how fast requests end.
            self.last_end = None;
            match self.commands.recv() {
                Ok(command) => self.take_in(command),
                Err(RecvError) => return false,
            }
        }
        loop {
            match self.commands.try_recv() {
                Ok(command) => self.take_in(command),
                Err(TryRecvError::Empty) => return !self.stop.load(Ordering::Acquire),
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn take_in(&mut self, command: Command<R::Adapter>) {
        match command {
            Command::Submit(sequence) => self.scheduler.enqueue(*sequence),
            Command::Wake => {}
        }
    }

    /// Ends what was cancelled or is past its deadline.
    fn drop_ended(&mut self, now: Instant) {
        for sequence in self.scheduler.take_if(Sequence::is_cancelled) {
            self.finish(sequence, FinishReason::Cancelled);
        }
        for sequence in self.scheduler.take_if(|sequence| sequence.is_late(now)) {
            self.finish(sequence, FinishReason::Deadline);
        }
    }

    fn schedule(&mut self, now: Instant) -> Plan<R::Adapter> {
        let plan = self.scheduler.plan(now);
        debug_assert!(
            plan.batch.rows() > 0 || self.scheduler.is_idle(),
            "a plan without rows"
        );
        self.publish(&mut self.board.lock());
        plan
    }

    /// Runs the batch. A panic of the model is an error like any other.
    fn forward(&mut self, plan: &Plan<R::Adapter>) -> Result<(), String> {
        let batch = &plan.batch;
        if batch.rows() == 0 {
            return Ok(());
        }
        let started = Instant::now();
        let run = AssertUnwindSafe(|| self.runner.run(batch, &mut self.logits));
        let outcome = catch_unwind(run).unwrap_or_else(|panic| Err(panic_message(&*panic)));
        let took = started.elapsed();
        self.count_step(plan, took);
        self.scheduler.observe(batch.rows(), took);
        outcome?;
        let expected = batch.logit_rows.len() * self.limits.vocab_size;
        if self.logits.len() == expected {
            return Ok(());
        }
        let got = self.logits.len();
        Err(format!("the model gave {got} logits instead of {expected}"))
    }

    /// Draws for every sequence that reached its last token, and ends what is at its end. If the step failed, it failed for
    /// all of its sequences.
    fn speak(&mut self, plan: Plan<R::Adapter>, outcome: Result<(), String>) {
        for part in plan.parts {
            let end = match &outcome {
                Ok(()) => self.advance(&part),
                Err(message) => Some(FinishReason::Error(message.clone())),
            };
            if let Some(reason) = end
                && let Some(sequence) = self.scheduler.take(part.sequence)
            {
                self.finish(sequence, reason);
            }
        }
    }

    /// Notes the rows that ran, draws if they were the last, and goes on drawing while drafts turn out right. Some: that was
    /// the end.
    fn advance(&mut self, part: &Part) -> Option<FinishReason> {
        let sequence = self.scheduler.get(part.sequence)?;
        let vocab = self.limits.vocab_size;
        let (told, count) = part.telling;
        for row in told..told + count {
            let logits = &self.logits[row * vocab..(row + 1) * vocab];
            if let Some(end) = tell(sequence, &mut self.sampler, logits) {
                return Some(end);
            }
        }
        let Some(first) = part.logits else {
            sequence.advance(part.rows);
            return None;
        };
        // A guess that did not run costs nothing to check, as far as its first token.
        let guess = sequence.guess(1);
        let kind = guess.map(|guess| guess.kind);
        let unrun = guess
            .filter(|_| part.drafts.is_empty())
            .and_then(|guess| guess.tokens.first().copied());
        let (mut drawn, mut right, mut end) = (0, 0, None);
        for row in first..=first + part.drafts.len() {
            let logits = &self.logits[row * vocab..(row + 1) * vocab];
            let token = match draw(sequence, &mut self.sampler, logits, &mut self.mask) {
                Ok(token) => token,
                Err(message) => {
                    end = Some(FinishReason::Error(message));
                    break;
                }
            };
            let id = token.id;
            drawn += 1;
            let guessed = part.drafts.get(row - first).copied();
            if let (Some(guess), Some(kind)) = (guessed.or(unrun), kind) {
                sequence.lookup.learn(kind, guess == id);
            }
            end = deliver(sequence, token);
            if end.is_some() || guessed != Some(id) {
                break;
            }
            right += 1;
        }
        sequence.advance(part.rows + right);
        let mut stats = self.board.lock();
        stats.sampled_tokens += drawn;
        stats.drafted_tokens += part.drafts.len() as u64;
        stats.accepted_tokens += right as u64;
        end
    }

    /// Gives back what a sequence held, counts its end, and only then tells its caller.
    fn finish(&mut self, sequence: Sequence<R::Adapter>, reason: FinishReason) {
        let outlet = sequence.release();
        let now = Instant::now();
        let interval = self.last_end.replace(now).map(|last| now - last);
        let mut stats = self.board.lock();
        self.publish(&mut stats);
        if let Some(interval) = interval {
            stats.count_interval(interval);
        }
        stats.count_finished(&reason);
        drop(stats);
        outlet.finish(reason);
    }

    fn cancel_all(&mut self) {
        // From here on a submit fails, or its sequence ends as cancelled when the channel is dropped.
        self.stop.store(true, Ordering::Release);
        while let Ok(command) = self.commands.try_recv() {
            self.take_in(command);
        }
        for sequence in self.scheduler.take_if(|_| true) {
            self.finish(sequence, FinishReason::Cancelled);
        }
    }

    fn count_step(&self, plan: &Plan<R::Adapter>, took: Duration) {
        let batch = &plan.batch;
        let speaking = batch.logit_rows.len() - plan.telling_rows;
        let mut stats = self.board.lock();
        stats.steps += 1;
        stats.rows += batch.rows() as u64;
        stats.prefill_rows += (batch.rows() - speaking) as u64;
        stats.model_time += took;
    }

    /// Writes down what the engine holds now.
    pub fn publish(&self, stats: &mut Stats) {
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

/// Tells of the next token of the prompt, from the logits of the row before it. Some: that was the end.
fn tell<A>(
    sequence: &mut Sequence<A>,
    sampler: &mut Sampler,
    logits: &[f32],
) -> Option<FinishReason> {
    let position = sequence.untold.next()?;
    let count = sequence.choice.top_logprobs.unwrap_or(0);
    let Ok(token) = sampler.judge(logits, sequence.tokens[position], count) else {
        return Some(FinishReason::Error(format!(
            "the model's logits for position {position} are not numbers"
        )));
    };
    let flow = sequence.outlet.prompt(token);
    (flow == Flow::Stop).then_some(FinishReason::Cancelled)
}

/// Draws one token from a row of logits.
fn draw<A>(
    sequence: &mut Sequence<A>,
    sampler: &mut Sampler,
    logits: &[f32],
    mask: &mut [u32],
) -> Result<Token, String> {
    let constrained = sequence.constrain(mask)?;
    let allowed = constrained.then_some(&*mask);
    let position = sequence.tokens.len();
    let drawn = sampler.draw(logits, &sequence.draw(allowed));
    drawn.map_err(|error| match error {
        DrawError::NotADistribution => {
            format!("the model's logits for position {position} are not numbers")
        }
        DrawError::NothingAllowed => {
            format!("the request's grammar allows no token at position {position}")
        }
    })
}

/// Gives one token to its sequence and its sink. Some: that was the last.
fn deliver<A>(sequence: &mut Sequence<A>, token: Token) -> Option<FinishReason> {
    sequence.outlet.count();
    if sequence.choice.stop_tokens.contains(&token.id) {
        return Some(FinishReason::Stop);
    }
    let progress = match sequence.push(token.id) {
        Ok(progress) => progress,
        Err(message) => return Some(FinishReason::Error(message)),
    };
    if sequence.outlet.token(token) == Flow::Stop {
        return Some(FinishReason::Cancelled);
    }
    if progress == Progress::Complete {
        return Some(FinishReason::Stop);
    }
    let full = sequence.outlet.completion_tokens() >= sequence.choice.max_new_tokens;
    full.then_some(FinishReason::Length)
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
