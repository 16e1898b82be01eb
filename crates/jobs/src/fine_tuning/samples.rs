//! What a job's adapter said on its way, in a file of the job's own that is replaced whole. A run that goes on from its checkpoint
//! comes by the steps since then again, so what was said there is taken out first.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::JobError;
use crate::record_file;

/// A question to the adapter as it stood after some step, and what it said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SampledAnswer {
    /// Optimizer steps done.
    pub step: u64,
    /// What it was asked.
    pub prompt: String,
    /// What it said, always the most probable token.
    pub answer: String,
}

/// All that a job's adapter said.
#[derive(Debug, Clone)]
pub(crate) struct Samples {
    path: PathBuf,
}

impl Samples {
    /// Those of the job whose folder is `dir`.
    pub fn of(dir: &Path) -> Samples {
        Samples {
            path: dir.join("samples.json"),
        }
    }

    /// All of them, by step and then as they were asked.
    pub fn all(&self) -> Result<Vec<SampledAnswer>, JobError> {
        match record_file::read(&self.path) {
            Err(JobError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(Vec::new())
            }
            found => found,
        }
    }

    /// Adds those of one step, which comes after all that are there, in one piece.
    pub fn add(&self, said: Vec<SampledAnswer>) -> Result<(), JobError> {
        let mut all = self.all()?;
        all.extend(said);
        record_file::write(&self.path, &all)
    }

    /// Takes out what was said after `step`, which will be said again.
    pub fn go_back_to(&self, step: u64) -> Result<(), JobError> {
        let mut all = self.all()?;
        let before = all.len();
        all.retain(|said| said.step <= step);
        if all.len() == before {
            return Ok(());
        }
        record_file::write(&self.path, &all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_that_are_taken_again_are_asked_again() {
        let folder = tempfile::tempdir().unwrap();
        let samples = Samples::of(folder.path());
        assert!(samples.all().unwrap().is_empty());
        samples.go_back_to(0).unwrap();
        let said = |step: u64| SampledAnswer {
            step,
            prompt: "Hi".to_owned(),
            answer: format!("after {step}"),
        };
        for step in [0, 3, 6] {
            samples.add(vec![said(step)]).unwrap();
        }
        samples.go_back_to(3).unwrap();
        assert_eq!(samples.all().unwrap(), [said(0), said(3)]);
        samples.add(vec![said(6)]).unwrap();
        assert_eq!(samples.all().unwrap(), [said(0), said(3), said(6)]);
    }
}
