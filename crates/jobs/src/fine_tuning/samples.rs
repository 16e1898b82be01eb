//! The sampled answers of a job, in a file that is replaced whole. A run that continues from a checkpoint samples the steps after it
//! again, so their answers are removed first.

use std::io;
use std::path::{Path, PathBuf};

use formats::disk;
use serde::{Deserialize, Serialize};

use crate::error::JobError;
use crate::record_file;

/// A question, and the adapter's answer after some step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SampledAnswer {
    /// Optimizer steps done.
    pub step: u64,
    /// The question.
    pub prompt: String,
    /// The greedy answer.
    pub answer: String,
}

/// The sampled answers of one job.
#[derive(Debug, Clone)]
pub(crate) struct Samples {
    path: PathBuf,
}

impl Samples {
    /// The sampled answers in the job's folder `dir`.
    pub fn of(dir: &Path) -> Samples {
        Samples {
            path: dir.join("samples.json"),
        }
    }

    /// All answers, by step and then by question.
    pub fn all(&self) -> Result<Vec<SampledAnswer>, JobError> {
        match record_file::read(&self.path) {
            Err(JobError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(Vec::new())
            }
            found => found,
        }
    }

    /// [`Samples::all`] for a run, which continues without a damaged file: the file is renamed and stays.
    fn all_or_new(&self) -> Result<Vec<SampledAnswer>, JobError> {
        match self.all() {
            Err(error @ JobError::Damaged { .. }) => {
                let damaged = self.path.with_extension("damaged.json");
                tracing::error!("{error}; renamed to {}", damaged.display());
                disk::rename(&self.path, &damaged).map_err(JobError::io(&self.path))?;
                Ok(Vec::new())
            }
            found => found,
        }
    }

    /// Adds the answers of one step, which is later than all stored ones, in one write.
    pub fn add(&self, answers: Vec<SampledAnswer>) -> Result<(), JobError> {
        let mut all = self.all_or_new()?;
        all.extend(answers);
        record_file::write(&self.path, &all)
    }

    /// Removes the answers after `step`, which will be sampled again.
    pub fn truncate_after(&self, step: u64) -> Result<(), JobError> {
        let mut all = self.all_or_new()?;
        let before = all.len();
        all.retain(|answer| answer.step <= step);
        if all.len() == before {
            return Ok(());
        }
        record_file::write(&self.path, &all)
    }
}

#[cfg(test)]
mod tests {
    use formats::disk::faults::for_each_fault;

    use super::*;

    #[test]
    fn repeated_steps_are_sampled_again() {
        let folder = tempfile::tempdir().unwrap();
        let samples = Samples::of(folder.path());
        assert!(samples.all().unwrap().is_empty());
        samples.truncate_after(0).unwrap();
        let sampled = |step: u64| SampledAnswer {
            step,
            prompt: "Hi".to_owned(),
            answer: format!("after {step}"),
        };
        for step in [0, 3, 6] {
            samples.add(vec![sampled(step)]).unwrap();
        }
        samples.truncate_after(3).unwrap();
        assert_eq!(samples.all().unwrap(), [sampled(0), sampled(3)]);
        samples.add(vec![sampled(6)]).unwrap();
        assert_eq!(samples.all().unwrap(), [sampled(0), sampled(3), sampled(6)]);
    }

    #[test]
    fn damaged_samples_do_not_stop_the_run() {
        let folder = tempfile::tempdir().unwrap();
        let samples = Samples::of(folder.path());
        std::fs::write(folder.path().join("samples.json"), "[{").unwrap();
        samples.truncate_after(3).unwrap();
        assert!(samples.all().unwrap().is_empty());
        assert!(folder.path().join("samples.damaged.json").exists());
    }

    #[test]
    fn samples_are_complete_after_every_fault() {
        for_each_fault(|injection| {
            let folder = tempfile::tempdir().unwrap();
            let samples = Samples::of(folder.path());
            let sampled = |step: u64| SampledAnswer {
                step,
                prompt: "Hi".to_owned(),
                answer: "Hello.".to_owned(),
            };
            samples.add(vec![sampled(1)]).unwrap();
            let added = injection.run(|| samples.add(vec![sampled(2)]));
            let found = samples.all().unwrap();
            assert_eq!(found[0], sampled(1));
            assert!(added.is_err() || found[1] == sampled(2), "{injection:?}");
            samples.add(vec![sampled(3)]).unwrap();
        });
    }
}
