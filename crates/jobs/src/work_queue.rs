//! A queue of background work: records on disk, their states, cancellation, and what remains after a restart.
//!
//! Training jobs and evaluations are both such queues. A record is written to disk before anyone sees its new state; a process that
//! was killed continues with the records that it finds. Must not know what the work is.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::JobError;
use crate::listing::Viewer;
use crate::record_file;

/// A record that a [`WorkQueue`] keeps.
pub(crate) trait QueueRecord: Clone + Serialize + DeserializeOwned {
    /// Its name in log lines.
    const KIND: &'static str;
    /// The most unfinished records.
    const MAX_OPEN: usize;
    /// The most stored records; the oldest finished ones make room.
    const MAX_STORED: usize;

    /// The fields that the queue reads.
    fn header(&self) -> RecordHeader<'_>;
    /// Sets its place in the order of arrival.
    fn set_number(&mut self, number: u64);
    /// The record's file, in the queue's folder `dir`.
    fn file(dir: &Path, id: &str) -> PathBuf;
    /// Removes the record's files in `dir`.
    fn remove(dir: &Path, id: &str) -> std::io::Result<()>;
    /// The error for an unknown id.
    fn not_found(id: &str) -> JobError;
    /// The error for [`QueueRecord::MAX_OPEN`] unfinished records.
    fn queue_full() -> JobError;
}

/// The fields of a record that a [`WorkQueue`] reads.
pub(crate) struct RecordHeader<'a> {
    /// Its id.
    pub id: &'a str,
    /// Its place in the order of arrival.
    pub number: u64,
    /// The API key that created it; none on a server without keys.
    pub owner: Option<&'a str>,
    /// Whether its state is final.
    pub is_over: bool,
}

/// Records by id, the one that is running, and a condition variable for the threads that wait for work.
pub(crate) struct WorkQueue<R> {
    dir: PathBuf,
    state: Mutex<QueueState<R>>,
    changed: Condvar,
}

/// The state behind the queue's lock.
pub(crate) struct QueueState<R> {
    pub(crate) records: BTreeMap<String, R>,
    pub(crate) running: Option<Running>,
    /// The record that is prepared for its turn.
    pub(crate) preparing: Option<Running>,
    closing: bool,
}

/// The record that a worker thread is working on.
#[derive(Debug, Clone)]
pub(crate) struct Running {
    pub(crate) id: String,
    /// Set to make the worker stop.
    pub(crate) stop: Arc<AtomicBool>,
    /// Parts that are done.
    pub(crate) done: Arc<AtomicU64>,
}

impl Running {
    fn new(id: &str) -> Running {
        Running {
            id: id.to_owned(),
            stop: Arc::default(),
            done: Arc::default(),
        }
    }
}

impl<R: QueueRecord> WorkQueue<R> {
    /// A queue in the folder `dir` with the records that were found there.
    pub(crate) fn new(dir: PathBuf, records: impl IntoIterator<Item = R>) -> WorkQueue<R> {
        let records = records
            .into_iter()
            .map(|record| (record.header().id.to_owned(), record))
            .collect();
        WorkQueue {
            dir,
            state: Mutex::new(QueueState {
                records,
                running: None,
                preparing: None,
                closing: false,
            }),
            changed: Condvar::new(),
        }
    }

    /// The queue's folder.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, QueueState<R>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a record: numbers it, removes old finished records, runs `prepare`, and writes the file. `admit` runs under the lock
    /// first, for checks that must still hold when the record is added.
    ///
    /// # Errors
    /// The queue is full, `admit` or `prepare` refuses, or the disk fails.
    pub(crate) fn add(
        &self,
        mut record: R,
        admit: impl FnOnce() -> Result<(), JobError>,
        prepare: impl FnOnce(&R) -> Result<(), JobError>,
    ) -> Result<R, JobError> {
        let mut state = self.lock();
        let open = state
            .records
            .values()
            .filter(|record| !record.header().is_over);
        if open.count() >= R::MAX_OPEN {
            return Err(R::queue_full());
        }
        admit()?;
        let numbers = state.records.values().map(|record| record.header().number);
        record.set_number(numbers.max().unwrap_or(0) + 1);
        self.make_room(&mut state);
        prepare(&record)?;
        self.save(&mut state, &record)?;
        drop(state);
        self.changed.notify_all();
        Ok(record)
    }

    /// Removes the oldest finished records until there is room for one more.
    fn make_room(&self, state: &mut QueueState<R>) {
        while state.records.len() >= R::MAX_STORED {
            let over = state
                .records
                .values()
                .filter(|record| record.header().is_over);
            let oldest = over.min_by_key(|record| record.header().number);
            let Some(oldest) = oldest.map(|record| record.header().id.to_owned()) else {
                return;
            };
            if let Err(error) = R::remove(&self.dir, &oldest) {
                tracing::warn!("cannot remove {} {oldest}: {error}", R::KIND);
            }
            state.records.remove(&oldest);
        }
    }

    /// Writes a record to disk, and only then makes it visible.
    pub(crate) fn save(&self, state: &mut QueueState<R>, record: &R) -> Result<(), JobError> {
        record_file::write(&R::file(&self.dir, record.header().id), record)?;
        state
            .records
            .insert(record.header().id.to_owned(), record.clone());
        Ok(())
    }

    /// [`WorkQueue::save`]; if the record cannot be written, it changes in memory only and the error is logged.
    pub(crate) fn save_or_log(&self, state: &mut QueueState<R>, record: &R) {
        if let Err(error) = self.save(state, record) {
            tracing::error!("{} {}: {error}", R::KIND, record.header().id);
            state
                .records
                .insert(record.header().id.to_owned(), record.clone());
        }
    }

    /// A record that `viewer` may see.
    pub(crate) fn find(&self, viewer: &Viewer, id: &str) -> Result<R, JobError> {
        self.lock().find(viewer, id)
    }

    /// The records that `viewer` may see and for which `wanted` holds, in the order of arrival.
    pub(crate) fn list(&self, viewer: &Viewer, wanted: impl Fn(&R) -> bool) -> Vec<R> {
        let state = self.lock();
        let visible = |record: &&R| viewer.sees(record.header().owner) && wanted(record);
        let mut records: Vec<R> = state.records.values().filter(visible).cloned().collect();
        drop(state);
        records.sort_by_key(|record| record.header().number);
        records
    }

    /// Changes a record for which `only_if` holds, on disk and then in memory; `None` if it does not hold any more.
    pub(crate) fn change(
        &self,
        id: &str,
        only_if: impl FnOnce(&R) -> bool,
        change: impl FnOnce(&mut R),
    ) -> Result<Option<R>, JobError> {
        let mut state = self.lock();
        let found = state.records.get(id).filter(|record| only_if(record));
        let Some(mut record) = found.cloned() else {
            return Ok(None);
        };
        change(&mut record);
        self.save(&mut state, &record)?;
        drop(state);
        self.changed.notify_all();
        Ok(Some(record))
    }

    /// Changes a record in memory only; the next save writes it.
    pub(crate) fn change_in_memory(&self, id: &str, change: impl FnOnce(&mut R)) {
        if let Some(record) = self.lock().records.get_mut(id) {
            change(record);
        }
    }

    /// Waits for a record with a priority and returns the one with the lowest; `None` once the queue closes.
    pub(crate) fn wait_for<K: Ord>(&self, priority: impl Fn(&R) -> Option<K>) -> Option<R> {
        let mut state = self.lock();
        loop {
            if state.closing {
                return None;
            }
            let ready = state.records.values();
            let ready = ready.filter_map(|record| Some((priority(record)?, record)));
            if let Some((_, record)) = ready.min_by(|(a, _), (b, _)| a.cmp(b)) {
                return Some(record.clone());
            }
            let woken = self.changed.wait(state);
            state = woken.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Wakes the threads that wait for work.
    pub(crate) fn notify(&self) {
        self.changed.notify_all();
    }

    /// Stops the running record and hands out no more work.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closing = true;
        for running in state.running.iter().chain(&state.preparing) {
            running.stop.store(true, Ordering::SeqCst);
        }
        drop(state);
        self.changed.notify_all();
    }
}

impl<R: QueueRecord> QueueState<R> {
    /// Whether the queue hands out no more work.
    pub(crate) fn is_closing(&self) -> bool {
        self.closing
    }

    /// A record that `viewer` may see.
    pub(crate) fn find(&self, viewer: &Viewer, id: &str) -> Result<R, JobError> {
        let found = self.records.get(id);
        let found = found.filter(|record| viewer.sees(record.header().owner));
        found.cloned().ok_or_else(|| R::not_found(id))
    }

    /// Marks `id` as the record that a worker prepares for its turn.
    pub(crate) fn prepare(&mut self, id: &str) -> Running {
        let preparing = Running::new(id);
        self.preparing = Some(preparing.clone());
        preparing
    }

    /// Marks `id` as the record that a worker is working on.
    pub(crate) fn start(&mut self, id: &str) -> Running {
        let running = Running::new(id);
        self.running = Some(running.clone());
        running
    }

    /// Makes the workers of `id` stop, and returns whether one of them runs it.
    pub(crate) fn stop(&self, id: &str) -> bool {
        let of_id = |running: &&Running| running.id == id;
        for running in self.running.iter().chain(&self.preparing).filter(of_id) {
            running.stop.store(true, Ordering::SeqCst);
        }
        self.running
            .as_ref()
            .is_some_and(|running| running.id == id)
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    struct Note {
        id: String,
        number: u64,
        over: bool,
    }

    impl QueueRecord for Note {
        const KIND: &'static str = "note";
        const MAX_OPEN: usize = 2;
        const MAX_STORED: usize = 3;

        fn header(&self) -> RecordHeader<'_> {
            RecordHeader {
                id: &self.id,
                number: self.number,
                owner: None,
                is_over: self.over,
            }
        }

        fn set_number(&mut self, number: u64) {
            self.number = number;
        }

        fn file(dir: &Path, id: &str) -> PathBuf {
            dir.join(format!("{id}.json"))
        }

        fn remove(dir: &Path, id: &str) -> std::io::Result<()> {
            std::fs::remove_file(Note::file(dir, id))
        }

        fn not_found(id: &str) -> JobError {
            JobError::NoJob { id: id.to_owned() }
        }

        fn queue_full() -> JobError {
            JobError::QueueFull { limit: 2 }
        }
    }

    fn note(id: &str) -> Note {
        Note {
            id: id.to_owned(),
            number: 0,
            over: false,
        }
    }

    #[test]
    fn a_full_queue_refuses_and_old_finished_records_make_room() {
        let folder = tempfile::tempdir().unwrap();
        let queue: WorkQueue<Note> = WorkQueue::new(folder.path().to_owned(), Vec::new());
        let add = |id: &str| queue.add(note(id), || Ok(()), |_| Ok(()));
        add("a").unwrap();
        assert_eq!(add("b").unwrap().number, 2);
        assert!(matches!(add("c"), Err(JobError::QueueFull { .. })));
        let finish = |id: &str| queue.change(id, |_| true, |note| note.over = true).unwrap();
        finish("a");
        add("c").unwrap();
        finish("b");
        add("d").unwrap();
        let everybody = Viewer::everybody();
        let ids: Vec<String> = queue
            .list(&everybody, |_| true)
            .into_iter()
            .map(|note| note.id)
            .collect();
        assert_eq!(ids, ["b", "c", "d"]);
        assert!(!Note::file(folder.path(), "a").exists());
        let stored: Note = record_file::read(&Note::file(folder.path(), "b")).unwrap();
        assert!(stored.over);
    }

    #[test]
    fn a_refused_or_unwritten_record_is_never_visible() {
        let folder = tempfile::tempdir().unwrap();
        let queue: WorkQueue<Note> = WorkQueue::new(folder.path().join("missing"), Vec::new());
        let refuse = || Err(JobError::NoJob { id: String::new() });
        assert!(queue.add(note("a"), refuse, |_| Ok(())).is_err());
        let fail = |_: &Note| Err(JobError::NoJob { id: String::new() });
        assert!(queue.add(note("b"), || Ok(()), fail).is_err());
        assert!(queue.list(&Viewer::everybody(), |_| true).is_empty());
    }

    #[test]
    fn closing_stops_the_running_record_and_wakes_the_workers() {
        let folder = tempfile::tempdir().unwrap();
        let queue: WorkQueue<Note> = WorkQueue::new(folder.path().to_owned(), Vec::new());
        queue.add(note("a"), || Ok(()), |_| Ok(())).unwrap();
        let running = queue.lock().start("a");
        assert!(!queue.lock().stop("b"));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| queue.wait_for(|_| None::<u64>));
            queue.close();
            assert_eq!(waiting.join().unwrap(), None);
        });
        assert!(running.stop.load(Ordering::SeqCst));
    }
}
