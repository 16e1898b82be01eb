//! The event log of a job: one JSON line per event in a file. A run that continues from a checkpoint repeats the steps after it, so their
//! lines are removed first and each step is logged once. A damaged line affects only itself.

use std::io::{self, BufWriter, Write as _};
use std::path::Path;

use formats::append_log::{AppendLog, Flush};
use formats::atomic_file;

use crate::error::JobError;
use crate::record_file::{fresh_id, now};
use crate::records::client_message::ClientMessage;
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
    pub fn push(&self, level: &str, message: impl Into<ClientMessage>, data: Option<Metrics>) {
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

    /// Calls `each` with every event, the oldest first. A long run has more events than should be in memory together. Damaged lines are
    /// skipped.
    pub fn for_each(&self, mut each: impl FnMut(Event)) -> Result<(), JobError> {
        self.log
            .read(|_, line| {
                if let Ok(event) = serde_json::from_slice::<Event>(line) {
                    each(event);
                }
            })
            .map_err(JobError::io(self.log.path()))
    }

    /// Removes the steps and validations after `step`, which will be repeated.
    pub fn truncate_after(&self, step: u64) -> Result<(), JobError> {
        let path = self.log.path();
        let stays = |event: &Event| event.data.as_ref().is_none_or(|data| data.step <= step);
        atomic_file::replace_private(path, |file| {
            let mut file = BufWriter::new(file);
            let mut written = Ok(());
            self.log.read(|_, line| {
                let event = serde_json::from_slice::<Event>(line).ok().filter(stays);
                if let (Some(event), true) = (event, written.is_ok()) {
                    written = serde_json::to_writer(&mut file, &event)
                        .map_err(io::Error::from)
                        .and_then(|()| file.write_all(b"\n"));
                }
            })?;
            written?;
            file.flush()
        })
        .map_err(JobError::io(path))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use formats::disk::faults::for_each_fault;

    use super::*;

    fn all(events: &EventLog) -> Vec<Event> {
        let mut all = Vec::new();
        events.for_each(|event| all.push(event)).unwrap();
        all
    }

    #[test]
    fn repeated_steps_are_logged_once() {
        let folder = tempfile::tempdir().unwrap();
        let events = EventLog::of(folder.path());
        assert!(all(&events).is_empty());
        events.push("info", "begun", None);
        for (step, message) in (1..).zip(["step 1", "step 2", "step 3", "step 4", "step 5"]) {
            let metrics = Metrics {
                step,
                ..Metrics::default()
            };
            events.push("info", message, Some(metrics));
        }
        // A line that is cut off.
        let path = folder.path().join(EVENTS_FILE);
        let mut text = fs::read_to_string(&path).unwrap();
        text.push_str("{\"id\":\"ftev");
        fs::write(&path, text).unwrap();
        // The event after a line that is cut off is complete.
        events.push("info", "resumed", None);
        assert_eq!(all(&events).len(), 7);
        events.truncate_after(3).unwrap();
        events.push("info", "step 4", None);
        let all = all(&events);
        let messages: Vec<&str> = all.iter().map(|event| event.message.as_str()).collect();
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
            let all = all(&events);
            let messages: Vec<&str> = all.iter().map(|event| event.message.as_str()).collect();
            assert_eq!((messages[0], messages[messages.len() - 1]), ("one", "next"));
            assert!(
                truncated.is_err() || !messages.contains(&"two"),
                "{injection:?}"
            );
        });
    }
}
