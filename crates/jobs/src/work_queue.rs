//! A queue of background work: records on disk, their states, cancellation, and what remains after a restart.
//!
//! Training jobs and evaluations are both such queues. A record is written to disk before anyone sees its new state; a process that
//! was killed continues with the records that it finds. Must not know what the work is.
//!
//! Each record belongs to an owner. Its quotas bound how many it may have, only its own finished records make room for a new one, and the
//! owners take turns, so that a queue that one of them filled does not delay the others.

use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use auth::Owner;

use crate::error::JobError;
use crate::key_turns::Stage;
use crate::listing::Viewer;
use crate::queue_state::{QueueRecord, QueueState};
use crate::record_file;

/// Records by id, the one that is running, and a condition variable for the threads that wait for work.
pub(crate) struct WorkQueue<R> {
    dir: PathBuf,
    state: Mutex<QueueState<R>>,
    changed: Condvar,
}

impl<R: QueueRecord> WorkQueue<R> {
    /// A queue in the folder `dir` with the records that were found there.
    pub(crate) fn new(dir: PathBuf, records: impl IntoIterator<Item = R>) -> WorkQueue<R> {
        WorkQueue {
            dir,
            state: Mutex::new(QueueState::new(records)),
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

    /// Adds a record of `owner`: numbers it, runs `prepare`, writes the file, and then removes old finished records of the same owner. `admit`
    /// runs under the lock first, for checks that must still hold when the record is added. Returns the record and those that were removed.
    ///
    /// # Errors
    /// [`JobError::Quota`], `admit` or `prepare` refuses, or the disk fails. Nothing is added or removed then, and what `prepare` wrote is gone.
    pub(crate) fn add(
        &self,
        owner: &Owner,
        mut record: R,
        admit: impl FnOnce() -> Result<(), JobError>,
        prepare: impl FnOnce(&R) -> Result<(), JobError>,
    ) -> Result<(R, Vec<R>), JobError> {
        let mut state = self.lock();
        state.check_quotas(owner, record.header().bytes)?;
        admit()?;
        record.set_number(state.next_number());
        let evicted = state.to_evict(owner)?;
        if let Err(error) = prepare(&record).and_then(|()| self.save(&mut state, &record)) {
            R::discard(&self.dir, record.header().id);
            return Err(error);
        }
        let evicted = evicted.iter().filter_map(|id| state.records.remove(id));
        let evicted: Vec<R> = evicted.collect();
        drop(state);
        self.changed.notify_all();
        // Removing a large folder takes time, in which other owners must not wait.
        for record in &evicted {
            let id = record.header().id;
            if let Err(error) = R::remove(&self.dir, id) {
                tracing::warn!("cannot remove {} {id}: {error}", R::KIND);
            }
        }
        Ok((record, evicted))
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

    /// Holds a record, so that it is not deleted, evicted or held a second time before the result is dropped; `None` if it is held already.
    pub(crate) fn hold(&self, id: &str) -> Option<HeldRecord<'_, R>> {
        self.lock().hold(id).then(|| HeldRecord {
            queue: self,
            id: id.to_owned(),
        })
    }

    /// Whether a call holds a record.
    pub(crate) fn is_held(&self, id: &str) -> bool {
        self.lock().is_held(id)
    }

    /// Deletes a record for which `only_if` holds, with its files; `None` if it does not hold, or a call holds the record.
    pub(crate) fn delete(
        &self,
        id: &str,
        only_if: impl FnOnce(&R) -> bool,
    ) -> Result<Option<R>, JobError> {
        let mut state = self.lock();
        if state.is_held(id) || !state.records.get(id).is_some_and(only_if) {
            return Ok(None);
        }
        R::remove(&self.dir, id).map_err(JobError::io(&R::file(&self.dir, id)))?;
        Ok(state.records.remove(id))
    }

    /// Changes a record in memory only; the next save writes it.
    pub(crate) fn change_in_memory(&self, id: &str, change: impl FnOnce(&mut R)) {
        if let Some(record) = self.lock().records.get_mut(id) {
            change(record);
        }
    }

    /// Waits for a record with a priority and returns the next one ([`QueueState::next`]). `None` once the queue closes.
    pub(crate) fn wait_for(&self, stage: Stage, priority: impl Fn(&R) -> Option<u8>) -> Option<R> {
        let mut state = self.lock();
        loop {
            if state.is_closing() {
                return None;
            }
            if let Some(record) = state.next(stage, &priority) {
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
        self.lock().close();
        self.changed.notify_all();
    }
}

/// A record that is held ([`WorkQueue::hold`]).
pub(crate) struct HeldRecord<'q, R: QueueRecord> {
    queue: &'q WorkQueue<R>,
    id: String,
}

impl<R: QueueRecord> Drop for HeldRecord<'_, R> {
    fn drop(&mut self) {
        self.queue.lock().release(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use auth::Resource;
    use formats::disk::faults::for_each_fault;
    use serde::{Deserialize, Serialize};

    use super::*;
    use crate::queue_state::RecordHeader;

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    struct Note {
        id: String,
        number: u64,
        owner: Option<String>,
        over: bool,
        only_copy: bool,
    }

    impl QueueRecord for Note {
        const KIND: &'static str = "note";
        const OPEN: Resource = Resource::OpenJobs;
        const MAX_OPEN: usize = 8;
        const STORED: Resource = Resource::StoredJobs;
        const MAX_STORED: usize = 16;

        fn header(&self) -> RecordHeader<'_> {
            RecordHeader {
                id: &self.id,
                number: self.number,
                owner: self.owner.as_deref(),
                is_over: self.over,
                has_only_copy: self.only_copy,
                bytes: 0,
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

        fn discard(dir: &Path, id: &str) {
            let _ = formats::disk::remove_file(&Note::file(dir, id));
        }

        fn not_found(id: &str) -> JobError {
            JobError::NoJob { id: id.to_owned() }
        }
    }

    fn note(id: &str) -> Note {
        Note {
            id: id.to_owned(),
            number: 0,
            owner: None,
            over: false,
            only_copy: false,
        }
    }

    fn queue() -> (tempfile::TempDir, WorkQueue<Note>) {
        let folder = tempfile::tempdir().unwrap();
        let queue = WorkQueue::new(folder.path().to_owned(), Vec::new());
        (folder, queue)
    }

    fn add(queue: &WorkQueue<Note>, owner: &Owner, id: &str) -> Result<Vec<Note>, JobError> {
        let note = Note {
            owner: owner.name().map(str::to_owned),
            ..note(id)
        };
        let added = queue.add(owner, note, || Ok(()), |_| Ok(()));
        added.map(|(_, removed)| removed)
    }

    fn ids(queue: &WorkQueue<Note>) -> Vec<String> {
        let notes = queue.list(&Viewer::everybody(), |_| true);
        notes.into_iter().map(|note| note.id).collect()
    }

    #[test]
    fn a_full_queue_refuses_and_old_finished_records_make_room() {
        let (folder, queue) = queue();
        let everyone = Owner::everyone();
        for id in 0..8 {
            add(&queue, &everyone, &id.to_string()).unwrap();
        }
        assert!(matches!(
            add(&queue, &everyone, "8"),
            Err(JobError::Quota(_))
        ));
        let finish = |id: &str| queue.change(id, |_| true, |note| note.over = true).unwrap();
        for id in 0..9 {
            finish(&id.to_string());
            assert!(
                add(&queue, &everyone, &(id + 8).to_string())
                    .unwrap()
                    .is_empty()
                    == (id < 8)
            );
        }
        assert_eq!(ids(&queue)[0], "1");
        assert!(!Note::file(folder.path(), "0").exists());
        let stored: Note = record_file::read(&Note::file(folder.path(), "1")).unwrap();
        assert!(stored.over);
    }

    #[test]
    fn a_key_evicts_its_own_records_only_and_an_only_copy_last() {
        let (folder, queue) = queue();
        let (one, two) = (key("one"), key("two"));
        add(&queue, &two, "theirs").unwrap();
        let finish = |id: &str, only_copy: bool| {
            let change = |note: &mut Note| (note.over, note.only_copy) = (true, only_copy);
            queue.change(id, |_| true, change).unwrap();
        };
        finish("theirs", true);
        for id in 0..1000 {
            add(&queue, &one, &format!("{id}")).unwrap();
            finish(&format!("{id}"), id == 0);
        }
        // A quarter of 16; the first has the only copy of something.
        assert_eq!(ids(&queue), ["theirs", "0", "997", "998", "999"]);
        assert!(Note::file(folder.path(), "theirs").exists());
        // Of records that all have one, the oldest goes: they are the key's own.
        for id in ["997", "998", "999"] {
            finish(id, true);
        }
        let removed = add(&queue, &one, "last").unwrap();
        assert_eq!(removed[0].id, "0");
    }

    #[test]
    fn one_key_cannot_fill_the_queue() {
        let (_folder, queue) = queue();
        let (one, two) = (key("one"), key("two"));
        add(&queue, &one, "1").unwrap();
        add(&queue, &one, "2").unwrap();
        let message = add(&queue, &one, "3").unwrap_err().to_string();
        assert!(
            message.starts_with("key one has 2 of its 2 unfinished jobs"),
            "{message}"
        );
        add(&queue, &two, "4").unwrap();
    }

    #[test]
    fn owners_take_turns() {
        let (_folder, queue) = queue();
        let (one, two) = (key("one"), key("two"));
        for (owner, id) in [(&one, "1"), (&one, "2"), (&two, "3"), (&two, "4")] {
            add(&queue, owner, id).unwrap();
        }
        let mut order = Vec::new();
        for _ in 0..4 {
            let next = queue.wait_for(Stage::Run, |note| (!note.over).then_some(0));
            let id = next.unwrap().id;
            queue.lock().start(&id);
            queue
                .change(&id, |_| true, |note| note.over = true)
                .unwrap();
            order.push(id);
        }
        assert_eq!(order, ["1", "3", "2", "4"]);
    }

    #[test]
    fn held_record_is_not_deleted_evicted_or_held_twice() {
        let (_folder, queue) = queue();
        let mut quotas = auth::Quotas::default();
        quotas.set(Resource::StoredJobs, Some(1));
        let one = Owner::key("one", quotas);
        add(&queue, &one, "a").unwrap();
        queue
            .change("a", |_| true, |note| note.over = true)
            .unwrap();
        let held = queue.hold("a").unwrap();
        assert!(queue.hold("a").is_none() && queue.is_held("a"));
        assert!(queue.delete("a", |note| note.over).unwrap().is_none());
        assert!(matches!(add(&queue, &one, "b"), Err(JobError::Quota(_))));
        // Other records are not concerned.
        add(&queue, &key("two"), "c").unwrap();
        assert!(queue.hold("c").is_some());
        assert!(queue.delete("c", |_| true).unwrap().is_some());
        drop(held);
        assert!(queue.hold("a").is_some());
        assert_eq!(add(&queue, &one, "b").unwrap()[0].id, "a");
    }

    fn key(name: &str) -> Owner {
        Owner::key(name, auth::Quotas::default())
    }

    #[test]
    fn a_refused_or_unwritten_record_is_never_visible() {
        let folder = tempfile::tempdir().unwrap();
        let queue: WorkQueue<Note> = WorkQueue::new(folder.path().join("missing"), Vec::new());
        let everyone = Owner::everyone();
        let refuse = || Err(JobError::NoJob { id: String::new() });
        assert!(queue.add(&everyone, note("a"), refuse, |_| Ok(())).is_err());
        let fail = |_: &Note| Err(JobError::NoJob { id: String::new() });
        assert!(queue.add(&everyone, note("b"), || Ok(()), fail).is_err());
        assert!(queue.list(&Viewer::everybody(), |_| true).is_empty());
    }

    #[test]
    fn cancelling_and_closing_stop_the_preparation_of_a_record() {
        let (_folder, queue) = queue();
        let everyone = Owner::everyone();
        for id in ["a", "b"] {
            add(&queue, &everyone, id).unwrap();
        }
        let first = queue.lock().prepare("a");
        // Nothing runs it, so its files may be removed at once.
        assert!(!queue.lock().stop("a"));
        assert!(first.stop.load(Ordering::SeqCst));
        let second = queue.lock().prepare("b");
        assert!(!second.stop.load(Ordering::SeqCst));
        queue.close();
        assert!(second.stop.load(Ordering::SeqCst));
    }

    #[test]
    fn closing_stops_the_running_record_and_wakes_the_workers() {
        let folder = tempfile::tempdir().unwrap();
        let queue: WorkQueue<Note> = WorkQueue::new(folder.path().to_owned(), Vec::new());
        add(&queue, &Owner::everyone(), "a").unwrap();
        let running = queue.lock().start("a");
        assert!(!queue.lock().stop("b"));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| queue.wait_for(Stage::Run, |_| None));
            queue.close();
            assert_eq!(waiting.join().unwrap(), None);
        });
        assert!(running.stop.load(Ordering::SeqCst));
    }

    #[test]
    fn acknowledged_records_are_on_disk_after_every_fault() {
        for_each_fault(|injection| {
            let folder = tempfile::tempdir().unwrap();
            let queue: WorkQueue<Note> = WorkQueue::new(folder.path().to_owned(), Vec::new());
            let everyone = Owner::everyone();
            let added = injection.run(|| add(&queue, &everyone, "a"));
            let path = Note::file(folder.path(), "a");
            match &added {
                Ok(_) => assert_eq!(record_file::read::<Note>(&path).unwrap().id, "a"),
                Err(_) => assert!(queue.lock().records.is_empty(), "{injection:?}"),
            }
            add(&queue, &everyone, "b").unwrap();
            let changed = injection.run(|| queue.change("b", |_| true, |note| note.over = true));
            let stored: Note = record_file::read(&Note::file(folder.path(), "b")).unwrap();
            assert!(stored.over || changed.is_err(), "{injection:?}");
        });
    }
}
