//! The files of a run: the checkpoint it resumes from and its metrics; and the trained adapters at its end.

use formats::peft::PairShape;

use super::{AdapterRun, PlannedRun, Run};
use crate::checkpoint::{self, AdapterView, BestParams};
use crate::error::TrainError;
use crate::metrics::{MetricsLog, MetricsRecord, parse_metrics};
use crate::optimizer::{AdamW, AdamWConfig};
use crate::outcome::{Outcome, TrainedAdapter};
use crate::params::LoraParams;
use crate::preference::PreferenceStats;
use crate::progress::{Observer, Validation};

impl<'o> PlannedRun<'o> {
    /// The run at its checkpoint with the checkpoint's step, or before its first step if there is no checkpoint.
    ///
    /// # Errors
    /// The checkpoint cannot be read or belongs to another run; or as [`PlannedRun::start`].
    pub(crate) fn resume(mut self) -> Result<(Run<'o>, Option<u64>), TrainError> {
        let Some(path) = &self.options.checkpoint else {
            return Ok((self.start()?, None));
        };
        let shapes = |adapter: &'_ AdapterRun| adapter.task.init.shapes().to_vec();
        let shapes: Vec<Vec<PairShape>> = self.adapters.iter().map(shapes).collect();
        let Some(checkpoint) = checkpoint::load(path, &self.identity, &shapes)? else {
            return Ok((self.start()?, None));
        };
        if checkpoint.step > self.plan.steps {
            let message = format!(
                "it is at step {}, the run has {}",
                checkpoint.step, self.plan.steps
            );
            return Err(TrainError::CheckpointBroken {
                path: path.clone(),
                message,
            });
        }
        let (mut params, mut optimizers) = (Vec::new(), Vec::new());
        for (adapter, state) in self.adapters.iter_mut().zip(checkpoint.adapters) {
            params.push(state.params);
            optimizers.push(AdamW {
                hyper: AdamWConfig::of(&adapter.task.settings),
                ..state.optimizer
            });
            adapter.validations = state.validations;
            adapter.best = state.best;
            adapter.stopping = state.stopping;
            adapter.metrics = MetricsLog::start(None, state.metrics)?;
        }
        let mut run = self.with(params, optimizers);
        run.step = checkpoint.step;
        run.clock.first_step = checkpoint.step;
        run.saved = Some((run.step, run.validations()));
        Ok((run, Some(checkpoint.step)))
    }
}

impl Run<'_> {
    /// Makes the metrics files hold exactly what the run has measured so far.
    pub(crate) fn open_metrics(&mut self) -> Result<(), TrainError> {
        for adapter in &mut self.adapters {
            let text = adapter.metrics.text().to_owned();
            adapter.metrics = MetricsLog::start(adapter.task.metrics.clone(), text)?;
        }
        Ok(())
    }

    /// Whether a checkpoint is due.
    pub(crate) fn checkpoint_is_due(&self) -> bool {
        let now = (self.step, self.validations());
        let before = self.saved.unwrap_or((0, 0));
        let every = |adapter: &AdapterRun| match adapter.task.settings.save_every {
            0 => false,
            every => self.step / every > before.0 / every,
        };
        self.options.checkpoint.is_some()
            && now != before
            && (now.1 != before.1 || self.is_done() || self.adapters.iter().any(every))
    }

    /// Writes the checkpoint.
    pub(crate) fn checkpoint(&mut self, observer: &mut dyn Observer) -> Result<(), TrainError> {
        let Some(path) = &self.options.checkpoint else {
            return Ok(());
        };
        let views: Vec<AdapterView<'_>> = self
            .adapters
            .iter()
            .zip(self.params.iter().zip(&self.optimizers))
            .map(|(adapter, (params, optimizer))| AdapterView {
                params,
                optimizer,
                validations: adapter.validations,
                best: adapter.best.as_ref(),
                stopping: adapter.stopping,
                metrics: adapter.metrics.text(),
            })
            .collect();
        checkpoint::save(path, &self.identity, self.step, &views)?;
        self.saved = Some((self.step, self.validations()));
        observer.checkpointed(path, self.step);
        Ok(())
    }

    /// Ends the run before its end, with a checkpoint of the last whole step.
    pub(crate) fn interrupted(
        &mut self,
        observer: &mut dyn Observer,
    ) -> Result<Outcome, TrainError> {
        if self.saved != Some((self.step, self.validations())) {
            self.checkpoint(observer)?;
        }
        let checkpoint = self.options.checkpoint.clone();
        Ok(Outcome::Interrupted {
            step: self.step,
            steps: self.steps(),
            checkpoint,
        })
    }

    /// The trained adapters: the best of each by validation loss, or the last.
    pub(crate) fn finish(self) -> Vec<TrainedAdapter> {
        let trained = |(adapter, last): (AdapterRun, LoraParams)| {
            let (steps, stopped_early) = (adapter.steps(), adapter.stopping.stopped.is_some());
            let metrics = adapter.metrics.text().to_owned();
            let (params, best) = match adapter.best {
                None => (last, None),
                Some(BestParams {
                    params,
                    loss,
                    step,
                    epoch,
                }) => (
                    params,
                    Some(Validation {
                        step,
                        epoch,
                        loss,
                        best: true,
                        preference: preference_of_best(&metrics),
                    }),
                ),
            };
            TrainedAdapter {
                name: adapter.task.name,
                settings: adapter.task.settings,
                params,
                best,
                steps,
                stopped_early,
                initial_adapter: adapter.task.initial_adapter,
                metrics,
            }
        };
        self.adapters
            .into_iter()
            .zip(self.params)
            .map(trained)
            .collect()
    }
}

/// The pair statistics of the best parameters; `None` outside preference tuning.
fn preference_of_best(metrics: &str) -> Option<PreferenceStats> {
    let best = |record: MetricsRecord| match record {
        MetricsRecord::Validation {
            best: true,
            preference,
            ..
        } => preference,
        _ => None,
    };
    parse_metrics(metrics).into_iter().rev().find_map(best)
}
