//! What a run measured, one JSON object a line, and the file beside the adapter that holds it.
//!
//! Only what is the same in every repetition of the run stands here: no clock, no speed. So a run that was killed and
//! resumed leaves the same bytes as one that was not. Knows nothing of what is computed.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::durable;
use crate::error::TrainError;

/// One line of `metrics.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Record {
    /// An optimizer step.
    Step {
        /// The step, from 1.
        step: u64,
        /// The epoch it belongs to, from 1.
        epoch: u64,
        /// Mean loss of the step's trained tokens, in nats.
        loss: f64,
        /// Trained tokens of the step.
        tokens: usize,
        /// The learning rate of the step.
        lr: f64,
        /// Global norm of the adapter's gradient before clipping.
        grad_norm: f64,
    },
    /// A pass over the validation rows.
    Validation {
        /// The last step before it, from 1.
        step: u64,
        /// The epoch that ended, from 1.
        epoch: u64,
        /// Mean loss of the trained tokens, in nats.
        loss: f64,
        /// Trained tokens of the validation rows.
        tokens: usize,
        /// Whether it is the lowest so far.
        best: bool,
    },
}

/// The records of one adapter, as the text of its `metrics.jsonl`, and the file, where one is wanted.
#[derive(Debug, Default)]
pub struct MetricsLog {
    text: String,
    file: Option<(PathBuf, File)>,
}

impl MetricsLog {
    /// Starts a log with the lines `text`; a file at `path` is replaced by exactly these, so that what was written
    /// after the checkpoint that gave `text` is gone.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn start(path: Option<PathBuf>, text: String) -> Result<Self, TrainError> {
        let file = match path {
            None => None,
            Some(path) => {
                durable::replace(&path, |beside| fs::write(beside, &text))?;
                let file = OpenOptions::new()
                    .append(true)
                    .open(&path)
                    .map_err(TrainError::write(&path))?;
                Some((path, file))
            }
        };
        Ok(Self { text, file })
    }

    /// Adds one record, at once in the file too.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn push(&mut self, record: &Record) -> Result<(), TrainError> {
        let mut line = serde_json::to_string(record).expect("a record of numbers is JSON");
        line.push('\n');
        self.text.push_str(&line);
        if let Some((path, file)) = &mut self.file {
            file.write_all(line.as_bytes())
                .map_err(TrainError::write(path))?;
        }
        Ok(())
    }

    /// The lines so far.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }
}

/// Reads the lines of a `metrics.jsonl`; lines of an unknown kind are left out.
#[must_use]
pub fn records(text: &str) -> Vec<Record> {
    text.lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(step: u64) -> Record {
        Record::Step {
            step,
            epoch: 1,
            loss: 0.1 + step as f64,
            tokens: 7,
            lr: 1e-3,
            grad_norm: 0.5,
        }
    }

    #[test]
    fn a_restart_takes_back_what_came_after_the_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/metrics.jsonl");
        let mut log = MetricsLog::start(Some(path.clone()), String::new()).unwrap();
        log.push(&step(1)).unwrap();
        let kept = log.text().to_owned();
        log.push(&step(2)).unwrap();
        assert_eq!(
            records(&std::fs::read_to_string(&path).unwrap()),
            [step(1), step(2)]
        );
        drop(log);
        let mut log = MetricsLog::start(Some(path.clone()), kept).unwrap();
        log.push(&step(3)).unwrap();
        assert_eq!(
            records(&std::fs::read_to_string(&path).unwrap()),
            [step(1), step(3)]
        );
        assert_eq!(std::fs::read_to_string(&path).unwrap(), log.text());
    }

    #[test]
    fn the_names_of_the_fields_are_fixed() {
        let line = serde_json::to_string(&step(1)).unwrap();
        assert_eq!(
            line,
            r#"{"kind":"step","step":1,"epoch":1,"loss":1.1,"tokens":7,"lr":0.001,"grad_norm":0.5}"#
        );
        let seen = Record::Validation {
            step: 4,
            epoch: 2,
            loss: 0.25,
            tokens: 9,
            best: true,
        };
        let line = serde_json::to_string(&seen).unwrap();
        assert_eq!(
            line,
            r#"{"kind":"validation","step":4,"epoch":2,"loss":0.25,"tokens":9,"best":true}"#
        );
        assert_eq!(
            records(&format!("{line}\n{{\"kind\":\"later\"}}\n")),
            [seen]
        );
    }
}
