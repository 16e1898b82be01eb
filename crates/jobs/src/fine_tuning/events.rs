//! The event log of a job: one JSON line per event in a file. A run that continues from a checkpoint repeats the steps after it, so their
//! lines are removed first and each step is logged once.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use formats::atomic_file;

use crate::error::JobError;
use crate::record_file::{fresh_id, now};
use crate::records::job::{Event, Metrics};

/// The longest page of events.
pub const MAX_EVENTS: usize = 1000;

/// The event log of one job.
#[derive(Debug, Clone)]
pub(crate) struct EventLog {
    path: PathBuf,
}

impl EventLog {
    /// The event log in the job's folder `dir`.
    pub fn of(dir: &Path) -> EventLog {
        EventLog {
            path: dir.join("events.jsonl"),
        }
    }

    /// Appends an event. A write error is logged and does not fail the job.
    pub fn push(&self, level: &str, message: impl Into<String>, data: Option<Metrics>) {
        let written = fresh_id("ftevent-").and_then(|id| {
            let event = Event {
                id,
                created_at: now(),
                level: level.to_owned(),
                message: message.into(),
                data,
            };
            let put = || -> io::Result<()> {
                let line = serde_json::to_string(&event)? + "\n";
                let mut file = OpenOptions::new()
                    .create(true)
                    .append(true)
                    .open(&self.path)?;
                file.write_all(line.as_bytes())
            };
            put().map_err(JobError::io(&self.path))
        });
        if let Err(error) = written {
            tracing::error!("cannot write a job event: {error}");
        }
    }

    /// All events, the oldest first. A line that a killed process left incomplete is skipped.
    pub fn all(&self) -> Result<Vec<Event>, JobError> {
        let text = match fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(JobError::io(&self.path)(error)),
        };
        let event = |line: &str| serde_json::from_str(line).ok();
        Ok(text.lines().filter_map(event).collect())
    }

    /// Removes the steps and validations after `step`, which will be repeated.
    pub fn truncate_after(&self, step: u64) -> Result<(), JobError> {
        let all = self.all()?;
        let stays = |event: &&Event| event.data.as_ref().is_none_or(|data| data.step <= step);
        let mut text = String::new();
        for event in all.iter().filter(stays) {
            text += &serde_json::to_string(event).unwrap_or_default();
            text.push('\n');
        }
        atomic_file::replace_private(&self.path, |file| file.write_all(text.as_bytes()))
            .map_err(JobError::io(&self.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_steps_are_logged_once() {
        let folder = tempfile::tempdir().unwrap();
        let events = EventLog::of(folder.path());
        assert!(events.all().unwrap().is_empty());
        events.push("info", "begun", None);
        for step in 1..=5 {
            let metrics = Metrics {
                step,
                ..Metrics::default()
            };
            events.push("info", format!("step {step}"), Some(metrics));
        }
        // A line that is cut off.
        let path = folder.path().join("events.jsonl");
        let mut text = fs::read_to_string(&path).unwrap();
        text.push_str("{\"id\":\"ftev");
        fs::write(&path, text).unwrap();
        events.truncate_after(3).unwrap();
        events.push("info", "step 4", None);
        let messages: Vec<String> = events
            .all()
            .unwrap()
            .into_iter()
            .map(|e| e.message)
            .collect();
        assert_eq!(messages, ["begun", "step 1", "step 2", "step 3", "step 4"]);
    }
}
