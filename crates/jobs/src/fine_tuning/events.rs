//! What happened to a job, one line an event, in a file of its own. A run that goes on from its checkpoint takes the steps since
//! then again, so their lines are taken out first: every step stands there once.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use formats::atomic_file;

use crate::error::JobError;
use crate::record_file::{fresh_id, now};
use crate::records::job::{Event, Metrics};

/// The longest page of events.
pub const MAX_EVENTS: usize = 1000;

/// A job's events.
#[derive(Debug, Clone)]
pub(crate) struct Events {
    path: PathBuf,
}

impl Events {
    /// Those of the job whose folder is `dir`.
    pub fn of(dir: &Path) -> Events {
        Events {
            path: dir.join("events.jsonl"),
        }
    }

    /// Writes one down. What cannot be written is said in the log; a job does not end for it.
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
            tracing::error!("an event of a job is lost: {error}");
        }
    }

    /// All of them, the oldest first. A line that a killed process left unfinished is passed over.
    pub fn all(&self) -> Result<Vec<Event>, JobError> {
        let text = match fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(JobError::io(&self.path)(error)),
        };
        let event = |line: &str| serde_json::from_str(line).ok();
        Ok(text.lines().filter_map(event).collect())
    }

    /// Takes out the steps and the validations after `step`, which will be taken again.
    pub fn go_back_to(&self, step: u64) -> Result<(), JobError> {
        let all = self.all()?;
        let kept = |event: &&Event| event.data.as_ref().is_none_or(|data| data.step <= step);
        let mut text = String::new();
        for event in all.iter().filter(kept) {
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
    fn steps_that_are_taken_again_stand_there_once() {
        let folder = tempfile::tempdir().unwrap();
        let events = Events::of(folder.path());
        assert!(events.all().unwrap().is_empty());
        events.push("info", "begun", None);
        for step in 1..=5 {
            let metrics = Metrics {
                step,
                ..Metrics::default()
            };
            events.push("info", format!("step {step}"), Some(metrics));
        }
        // Cut off in the middle of a line.
        let path = folder.path().join("events.jsonl");
        let mut text = fs::read_to_string(&path).unwrap();
        text.push_str("{\"id\":\"ftev");
        fs::write(&path, text).unwrap();
        events.go_back_to(3).unwrap();
        events.push("info", "step 4", None);
        let said: Vec<String> = events
            .all()
            .unwrap()
            .into_iter()
            .map(|e| e.message)
            .collect();
        assert_eq!(said, ["begun", "step 1", "step 2", "step 3", "step 4"]);
    }
}
