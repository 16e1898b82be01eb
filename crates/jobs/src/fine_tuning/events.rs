//! The event log of a job: one JSON line per event in a file. A run that continues from a checkpoint repeats the steps after it, so their
//! lines are removed first and each step is logged once. A damaged line affects only itself.

use std::io::Write as _;
use std::path::Path;

use formats::append_log::{AppendLog, Flush};
use formats::atomic_file;

use crate::error::JobError;
use crate::record_file::{fresh_id, now};
use crate::records::job::{EVENTS_FILE, Event, Metrics};

/// The longest page of events.
pub const MAX_EVENTS: usize = 1000;

/// The event log of one job.
#[derive(Debug, Clone)]
pub(crate) struct EventLog {
    log: AppendLog,
}

impl EventLog {
    /// The event log in the job's folder `dir`.
    pub fn of(dir: &Path) -> EventLog {
        EventLog {
            log: AppendLog::new(dir.join(EVENTS_FILE)),
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
            let line = serde_json::to_string(&event).map_err(std::io::Error::from);
            line.and_then(|line| self.log.append(line.as_bytes(), Flush::Later))
                .map_err(JobError::io(self.log.path()))
        });
        if let Err(error) = written {
            tracing::error!("cannot write a job event: {error}");
        }
    }

    /// All events, the oldest first. Damaged lines are skipped.
    pub fn all(&self) -> Result<Vec<Event>, JobError> {
        let mut events = Vec::new();
        self.log
            .read(|_, line| events.extend(serde_json::from_slice::<Event>(line).ok()))
            .map_err(JobError::io(self.log.path()))?;
        Ok(events)
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
        let path = self.log.path();
        atomic_file::replace_private(path, |file| file.write_all(text.as_bytes()))
            .map_err(JobError::io(path))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use formats::disk::faults::for_each_fault;

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
        let path = folder.path().join(EVENTS_FILE);
        let mut text = fs::read_to_string(&path).unwrap();
        text.push_str("{\"id\":\"ftev");
        fs::write(&path, text).unwrap();
        // The event after a line that is cut off is complete.
        events.push("info", "resumed", None);
        assert_eq!(events.all().unwrap().len(), 7);
        events.truncate_after(3).unwrap();
        events.push("info", "step 4", None);
        let messages: Vec<String> = events
            .all()
            .unwrap()
            .into_iter()
            .map(|e| e.message)
            .collect();
        assert_eq!(
            messages,
            ["begun", "step 1", "step 2", "step 3", "resumed", "step 4"]
        );
    }

    #[test]
    fn events_are_complete_after_every_fault() {
        for_each_fault(|injection| {
            let folder = tempfile::tempdir().unwrap();
            let events = EventLog::of(folder.path());
            let step = |step| Metrics {
                step,
                ..Metrics::default()
            };
            events.push("info", "one", Some(step(1)));
            events.push("info", "two", Some(step(2)));
            let truncated = injection.run(|| {
                let truncated = events.truncate_after(1);
                events.push("info", "resumed", None);
                truncated
            });
            events.push("info", "next", None);
            let all = events.all().unwrap();
            let messages: Vec<&str> = all.iter().map(|event| event.message.as_str()).collect();
            assert_eq!((messages[0], messages[messages.len() - 1]), ("one", "next"));
            assert!(
                truncated.is_err() || !messages.contains(&"two"),
                "{injection:?}"
            );
        });
    }
}
