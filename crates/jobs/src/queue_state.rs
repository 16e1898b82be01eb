//! The state of a queue, as plain data: its records, which of them are worked on, whose turn it is, and what counts for quotas. Must not
//! know the disk, locks and threads.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use auth::{Owner, Resource, Usage};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::JobError;
use crate::key_turns::{Stage, Turns};
use crate::listing::Viewer;

/// A record that a queue keeps.
pub(crate) trait QueueRecord: Clone + Serialize + DeserializeOwned {
    /// Its name in log lines.
    const KIND: &'static str;
    /// Its unfinished records, for quotas.
    const OPEN: Resource;
    /// The most unfinished records of all owners.
    const MAX_OPEN: usize;
    /// Its records, for quotas.
    const STORED: Resource;
    /// The most records of all owners.
    const MAX_STORED: usize;
    /// The bytes of its records' files, for quotas, and the most of all owners; `None` if the number of records bounds them.
    const BYTES: Option<(Resource, u64)> = None;

    /// The fields that the queue reads.
    fn header(&self) -> RecordHeader<'_>;
    /// Sets its place in the order of arrival.
    fn set_number(&mut self, number: u64);
    /// The record's file, in the queue's folder `dir`.
    fn file(dir: &Path, id: &str) -> PathBuf;
    /// Removes the record's files in `dir`.
    fn remove(dir: &Path, id: &str) -> std::io::Result<()>;
    /// Removes what was written in `dir` of a record that was never visible.
    fn discard(dir: &Path, id: &str);
    /// The error for an unknown id.
    fn not_found(id: &str) -> JobError;
}

/// The fields of a record that a queue reads.
pub(crate) struct RecordHeader<'a> {
    /// Its id.
    pub id: &'a str,
    /// Its place in the order of arrival.
    pub number: u64,
    /// The API key that created it; none on a server without keys.
    pub owner: Option<&'a str>,
    /// Whether its state is final.
    pub is_over: bool,
    /// Whether its files have something that is nowhere else.
    pub has_only_copy: bool,
    /// What its files count for [`QueueRecord::BYTES`].
    pub bytes: u64,
}

/// The state behind the queue's lock.
pub(crate) struct QueueState<R> {
    pub(crate) records: BTreeMap<String, R>,
    pub(crate) running: Option<Running>,
    /// The record that is prepared for its turn.
    pub(crate) preparing: Option<Running>,
    /// The records that a call works on without the lock.
    held: BTreeSet<String>,
    turns: Turns,
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

impl<R: QueueRecord> QueueState<R> {
    /// The state of a queue that begins with `records`.
    pub(crate) fn new(records: impl IntoIterator<Item = R>) -> QueueState<R> {
        let records = records
            .into_iter()
            .map(|record| (record.header().id.to_owned(), record))
            .collect();
        QueueState {
            records,
            running: None,
            preparing: None,
            held: BTreeSet::new(),
            turns: Turns::default(),
            closing: false,
        }
    }

    /// Checks that `owner` may have one more unfinished record, of this size.
    ///
    /// # Errors
    /// [`JobError::Quota`].
    pub(crate) fn check_quotas(&self, owner: &Owner, bytes: u64) -> Result<(), JobError> {
        let open = self.usage(owner, R::MAX_OPEN, |header| !header.is_over);
        owner.check(R::OPEN, open, 1)?;
        if let Some((resource, limit)) = R::BYTES {
            let stored = self.sum(owner, limit, |header| header.bytes);
            owner.check(resource, stored, bytes)?;
        }
        Ok(())
    }

    /// The place of the next record in the order of arrival.
    pub(crate) fn next_number(&self) -> u64 {
        let numbers = self.records.values().map(|record| record.header().number);
        // Those that were read from disk have numbers that `record_file::check_number` accepts.
        numbers.max().unwrap_or(0).saturating_add(1)
    }

    /// The next record of those with a priority: the lowest priority, then the owner whose last turn in `stage` is the longest ago, then the
    /// order of arrival.
    pub(crate) fn next(&self, stage: Stage, priority: impl Fn(&R) -> Option<u8>) -> Option<&R> {
        let ready = self.records.values().filter_map(|record| {
            let header = record.header();
            let turn = self.turns.last(stage, header.owner);
            Some(((priority(record)?, turn, header.number), record))
        });
        let first = ready.min_by_key(|(order, _)| *order);
        first.map(|(_, record)| record)
    }

    /// Holds a record; whether no other call holds it.
    pub(crate) fn hold(&mut self, id: &str) -> bool {
        self.held.insert(id.to_owned())
    }

    /// Whether a call holds a record.
    pub(crate) fn is_held(&self, id: &str) -> bool {
        self.held.contains(id)
    }

    /// Ends [`QueueState::hold`].
    pub(crate) fn release(&mut self, id: &str) {
        self.held.remove(id);
    }

    /// Stops the records that workers work on, and hands out no more work.
    pub(crate) fn close(&mut self) {
        self.closing = true;
        for running in self.running.iter().chain(&self.preparing) {
            running.stop.store(true, Ordering::SeqCst);
        }
    }

    /// Whether the queue hands out no more work.
    pub(crate) fn is_closing(&self) -> bool {
        self.closing
    }

    /// How many records for which `counts` holds `owner` has, and all owners have.
    fn usage(
        &self,
        owner: &Owner,
        limit: usize,
        counts: impl Fn(&RecordHeader<'_>) -> bool,
    ) -> Usage {
        self.sum(owner, limit as u64, |header| u64::from(counts(header)))
    }

    /// The oldest finished records of `owner` that must go so that it may have one more; those that have an only copy of something go last.
    ///
    /// # Errors
    /// [`JobError::Quota`]: its other records are unfinished, or are held.
    pub(crate) fn to_evict(&self, owner: &Owner) -> Result<Vec<String>, JobError> {
        let headers = self.records.values().map(QueueRecord::header);
        let mut finished: Vec<RecordHeader<'_>> = headers
            .filter(|header| header.is_over && owner.owns(header.owner))
            .filter(|header| !self.held.contains(header.id))
            .collect();
        finished.sort_by_key(|header| (header.has_only_copy, header.number));
        let mut finished = finished.into_iter();
        let mut stored = self.usage(owner, R::MAX_STORED, |_| true);
        let mut evicted = Vec::new();
        while let Err(exceeded) = owner.check(R::STORED, stored, 1) {
            let oldest = finished.next().ok_or(exceeded)?;
            evicted.push(oldest.id.to_owned());
            stored.own -= 1;
            stored.all -= 1;
        }
        Ok(evicted)
    }

    /// The sum of what `count` makes of the records of `owner`, and of all owners.
    fn sum(&self, owner: &Owner, limit: u64, count: impl Fn(&RecordHeader<'_>) -> u64) -> Usage {
        let mut usage = Usage {
            own: 0,
            all: 0,
            limit,
        };
        for header in self.records.values().map(QueueRecord::header) {
            let counted = count(&header);
            usage.all = usage.all.saturating_add(counted);
            if owner.owns(header.owner) {
                usage.own = usage.own.saturating_add(counted);
            }
        }
        usage
    }

    /// Counts a turn of the owner of `id`.
    fn take_turn(&mut self, stage: Stage, id: &str) {
        let headers = self.records.values().map(QueueRecord::header);
        let open = headers.filter(|header| !header.is_over);
        let owners: BTreeSet<Option<&str>> = open.map(|header| header.owner).collect();
        if let Some(record) = self.records.get(id) {
            self.turns.take(stage, record.header().owner, &owners);
        }
    }

    /// A record that `viewer` may see.
    pub(crate) fn find(&self, viewer: &Viewer, id: &str) -> Result<R, JobError> {
        let found = self.records.get(id);
        let found = found.filter(|record| viewer.sees(record.header().owner));
        found.cloned().ok_or_else(|| R::not_found(id))
    }

    /// Marks `id` as the record that a worker prepares for its turn.
    pub(crate) fn prepare(&mut self, id: &str) -> Running {
        self.take_turn(Stage::Prepare, id);
        let preparing = Running::new(id);
        self.preparing = Some(preparing.clone());
        preparing
    }

    /// Marks `id` as the record that a worker is working on.
    pub(crate) fn start(&mut self, id: &str) -> Running {
        self.take_turn(Stage::Run, id);
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
