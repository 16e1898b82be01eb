//! The reference log-probabilities of a preference run, read from their file or computed before the first step.

use std::path::PathBuf;

use super::{Run, check_item_losses};
use crate::batch;
use crate::error::TrainError;
use crate::example::Example;
use crate::learner::{BatchItem, Learner};
use crate::params::LoraParams;
use crate::preference::reference_cache::{self, CachedReference};
use crate::progress::{Observer, ReferenceProgress};

impl Run<'_> {
    /// Sets the reference log-probabilities of every adapter in preference tuning. Returns false if interrupted.
    ///
    /// The reference is the model at the start of the run: the base, or the base with the task's initial adapter.
    pub(crate) fn reference_logps(
        &mut self,
        learner: &mut dyn Learner,
        observer: &mut dyn Observer,
        stop: &dyn Fn() -> bool,
    ) -> Result<bool, TrainError> {
        for index in 0..self.adapters.len() {
            let Some(logps) = self.adapter_reference(index, learner, observer, stop)? else {
                return Ok(false);
            };
            let task = &mut self.adapters[index].task;
            if let Some(preference) = &mut task.preference {
                let (train, validation) = logps.split_at(task.train.len());
                preference.train.reference_logps = train.to_vec();
                preference.validation.reference_logps = validation.to_vec();
            }
        }
        Ok(true)
    }

    /// Reads or computes the reference of adapter `index`: two log-probabilities a pair, those of the training rows first. Empty
    /// without preference tuning. Returns `None` if interrupted.
    fn adapter_reference(
        &self,
        index: usize,
        learner: &mut dyn Learner,
        observer: &mut dyn Observer,
        stop: &dyn Fn() -> bool,
    ) -> Result<Option<Vec<[f64; 2]>>, TrainError> {
        let task = &self.adapters[index].task;
        let Some(preference) = &task.preference else {
            return Ok(Some(Vec::new()));
        };
        let (train, validation) = (&preference.train.examples, &preference.validation.examples);
        let pairs: Vec<[&Example; 2]> = task
            .train
            .iter()
            .chain(&task.validation)
            .zip(train.iter().chain(validation))
            .map(|(chosen, rejected)| [chosen, rejected])
            .collect();
        let key = reference_cache::key(
            &self.options.base,
            task.initial_adapter.as_deref(),
            &[&task.train, train, &task.validation, validation],
        );
        let file = self.reference_file(&key);
        if let Some(file) = &file {
            match reference_cache::read(file, &key, pairs.len())? {
                CachedReference::Found(logps) => {
                    observer.reference(index, pairs.len(), ReferenceProgress::Read(file));
                    return Ok(Some(logps));
                }
                CachedReference::Damaged => {
                    observer.reference(index, pairs.len(), ReferenceProgress::Damaged(file));
                }
                CachedReference::Missing => {}
            }
        }
        let start = match task.initial_adapter {
            None => LoraParams::default(),
            Some(_) => task.init.values()?,
        };
        let mut on_progress = |done| {
            observer.reference(index, pairs.len(), ReferenceProgress::Computing { done });
        };
        let limit = self.options.batch_tokens;
        let Some(logps) = compute(learner, start, &pairs, limit, &mut on_progress, stop)? else {
            return Ok(None);
        };
        if logps.iter().flatten().any(|number| !number.is_finite()) {
            return Err(TrainError::NotFinite {
                adapter: task.name.clone(),
                step: self.step,
                what: "reference log-probability",
            });
        }
        if let Some(file) = &file {
            reference_cache::write(file, &key, &logps)?;
        }
        Ok(Some(logps))
    }

    /// Sets the reference log-probabilities to zero, for a step that is only timed.
    pub(crate) fn without_reference_logps(&mut self) {
        for adapter in &mut self.adapters {
            let task = &mut adapter.task;
            if let Some(preference) = &mut task.preference {
                preference.train.reference_logps = vec![[0.0; 2]; task.train.len()];
            }
        }
    }

    /// The reference file, next to the checkpoint and named by its key.
    fn reference_file(&self, key: &str) -> Option<PathBuf> {
        let checkpoint = self.options.checkpoint.as_ref()?;
        let short = key.get(..16).unwrap_or(key);
        Some(checkpoint.with_file_name(format!("reference-{short}")))
    }
}

/// Computes the log-probabilities of the answers of `pairs` under the adapter `start`. Returns `None` if interrupted.
fn compute(
    learner: &mut dyn Learner,
    start: LoraParams,
    pairs: &[[&Example; 2]],
    batch_tokens: usize,
    on_progress: &mut dyn FnMut(usize),
    stop: &dyn Fn() -> bool,
) -> Result<Option<Vec<[f64; 2]>>, TrainError> {
    let params = [start];
    let lengths: Vec<usize> = pairs
        .iter()
        .map(|pair| pair.iter().map(|example| example.tokens.len()).sum())
        .collect();
    let mut logps = Vec::with_capacity(pairs.len());
    for piece in batch::pieces(&lengths, batch_tokens) {
        if stop() {
            return Ok(None);
        }
        on_progress(piece.start);
        let examples = pairs[piece].iter().flatten();
        let items: Vec<BatchItem<'_>> = examples
            .map(|&example| BatchItem::new(0, example))
            .collect();
        let losses = learner.item_losses(&params, &items)?;
        check_item_losses(&losses, &items)?;
        logps.extend(
            losses
                .chunks_exact(2)
                .map(|pair| [-pair[0].loss, -pair[1].loss]),
        );
    }
    Ok(Some(logps))
}
