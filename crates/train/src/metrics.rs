//! The metrics of a run: one JSON object a line in `metrics.jsonl` next to the adapter, and the
//! same numbers for TensorBoard in `tensorboard/`.
//!
//! Contains only values that are the same in every repetition of the run: no times, no speeds. So a run that was killed and
//! resumed leaves the same bytes as one that was not. Does not know how they are computed.

use std::io::Write as _;
use std::path::PathBuf;

use formats::disk::{self, DiskFile};
use serde::{Deserialize, Serialize};

use crate::error::TrainError;
use crate::preference::PreferenceStats;
use crate::replace_file::replace_file;
use crate::tensorboard;

/// One line of `metrics.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum MetricsRecord {
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
        /// Statistics of the step's pairs, in preference tuning; `loss` is then the mean objective of a pair.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        preference: Option<PreferenceStats>,
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
        /// Statistics of the validation pairs, in preference tuning.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        preference: Option<PreferenceStats>,
    },
}

/// The folder of the events file, next to `metrics.jsonl`.
pub const TENSORBOARD: &str = "tensorboard";

/// The records of one adapter: as the text of its `metrics.jsonl`, and as files if they are wanted.
#[derive(Debug, Default)]
pub struct MetricsLog {
    text: String,
    files: Option<[Appended; 2]>,
}

/// A file that grows at its end.
#[derive(Debug)]
struct Appended {
    path: PathBuf,
    file: DiskFile,
}

impl Appended {
    /// Makes the file hold exactly `bytes`.
    fn start(path: PathBuf, bytes: &[u8]) -> Result<Self, TrainError> {
        replace_file(&path, |file| file.write_all(bytes))?;
        let file = disk::open_append(&path).map_err(TrainError::write(&path))?;
        Ok(Self { path, file })
    }

    fn push(&mut self, bytes: &[u8]) -> Result<(), TrainError> {
        let written = self.file.write_all(bytes);
        written.map_err(TrainError::write(&self.path))
    }
}

impl MetricsLog {
    /// Starts a log with the lines `text`. A file at `path`, and the events file next to it, are replaced by exactly
    /// these, so that what was written after the checkpoint that gave `text` is gone.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn start(path: Option<PathBuf>, text: String) -> Result<Self, TrainError> {
        let Some(path) = path else {
            return Ok(Self { text, files: None });
        };
        let mut events = tensorboard::start();
        for record in parse_metrics(&text) {
            events.extend(tensorboard::event(&record));
        }
        let tensorboard_path = path.with_file_name(TENSORBOARD).join(tensorboard::FILE);
        let files = [
            Appended::start(path, text.as_bytes())?,
            Appended::start(tensorboard_path, &events)?,
        ];
        Ok(Self {
            text,
            files: Some(files),
        })
    }

    /// Adds one record, at once in the files too.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn push(&mut self, record: &MetricsRecord) -> Result<(), TrainError> {
        let mut line = serde_json::to_string(record).expect("a record of numbers is JSON");
        line.push('\n');
        self.text.push_str(&line);
        if let Some([lines, events]) = &mut self.files {
            lines.push(line.as_bytes())?;
            events.push(&tensorboard::event(record))?;
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
pub fn parse_metrics(text: &str) -> Vec<MetricsRecord> {
    text.lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(step: u64) -> MetricsRecord {
        MetricsRecord::Step {
            step,
            epoch: 1,
            loss: 0.1 + step as f64,
            tokens: 7,
            lr: 1e-3,
            grad_norm: 0.5,
            preference: None,
        }
    }

    #[test]
    fn restart_removes_records_after_the_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/metrics.jsonl");
        let mut log = MetricsLog::start(Some(path.clone()), String::new()).unwrap();
        log.push(&step(1)).unwrap();
        let kept = log.text().to_owned();
        log.push(&step(2)).unwrap();
        assert_eq!(
            parse_metrics(&std::fs::read_to_string(&path).unwrap()),
            [step(1), step(2)]
        );
        drop(log);
        let mut log = MetricsLog::start(Some(path.clone()), kept).unwrap();
        log.push(&step(3)).unwrap();
        assert_eq!(
            parse_metrics(&std::fs::read_to_string(&path).unwrap()),
            [step(1), step(3)]
        );
        assert_eq!(std::fs::read_to_string(&path).unwrap(), log.text());
        // The events file has the same records: no more, no less, the same bytes as if it had never stopped.
        let events = path.with_file_name(TENSORBOARD).join(tensorboard::FILE);
        let mut expected = tensorboard::start();
        expected.extend(tensorboard::event(&step(1)));
        expected.extend(tensorboard::event(&step(3)));
        assert_eq!(std::fs::read(events).unwrap(), expected);
    }

    #[test]
    fn field_names_are_stable() {
        let line = serde_json::to_string(&step(1)).unwrap();
        assert_eq!(
            line,
            r#"{"kind":"step","step":1,"epoch":1,"loss":1.1,"tokens":7,"lr":0.001,"grad_norm":0.5}"#
        );
        let seen = MetricsRecord::Validation {
            step: 4,
            epoch: 2,
            loss: 0.25,
            tokens: 9,
            best: true,
            preference: None,
        };
        let line = serde_json::to_string(&seen).unwrap();
        assert_eq!(
            line,
            r#"{"kind":"validation","step":4,"epoch":2,"loss":0.25,"tokens":9,"best":true}"#
        );
        assert_eq!(
            parse_metrics(&format!("{line}\n{{\"kind\":\"later\"}}\n")),
            [seen]
        );
    }
}
