//! Makes the disk fail, for tests: one fault at one operation of the current thread. Compiled only for tests (the feature `faults`).
//!
//! ```ignore
//! for_each_fault(|injection| {
//!     let folder = folder_with_the_old_content();
//!     let result = injection.run(|| write_the_new_content(&folder));
//!     // The content is old or new, an `Ok` means new, and the next write succeeds.
//! });
//! ```

use std::cell::RefCell;
use std::fs::File;
use std::io;

use super::operation::{Effect, Operation};

/// How the disk fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A write stores half of its bytes and reports so; another operation succeeds.
    ShortWrite,
    /// The disk is full for one operation: a write stores half of its bytes before it fails.
    NoSpace,
    /// The disk is full from this operation on; removing and truncating still work.
    StaysFull,
    /// The operation fails with EIO; a write stores half of its bytes.
    InputOutput,
    /// The process is killed: this operation and all later ones do not take place, except half of a write.
    Kill,
    /// The same, and the bytes that were not flushed are lost.
    PowerCut,
}

impl Fault {
    /// All of them.
    pub const ALL: [Fault; 6] = [
        Fault::ShortWrite,
        Fault::NoSpace,
        Fault::StaysFull,
        Fault::InputOutput,
        Fault::Kill,
        Fault::PowerCut,
    ];

    /// Whether the process does not survive it.
    #[must_use]
    pub fn ends_the_process(self) -> bool {
        matches!(self, Fault::Kill | Fault::PowerCut)
    }
}

/// A fault at the n-th operation.
#[derive(Debug)]
pub struct Injection {
    /// How the disk fails.
    pub fault: Fault,
    /// At which operation, from 1.
    pub at: usize,
    reached: bool,
}

struct State {
    fault: Fault,
    at: usize,
    count: usize,
    /// The open files, with the length that is on the disk.
    files: Vec<(File, u64)>,
}

thread_local! {
    static STATE: RefCell<Option<State>> = const { RefCell::new(None) };
}

impl Injection {
    /// Runs `work` with the fault. Operations are counted anew in each call.
    pub fn run<T>(&mut self, work: impl FnOnce() -> T) -> T {
        STATE.with_borrow_mut(|state| {
            *state = Some(State {
                fault: self.fault,
                at: self.at,
                count: 0,
                files: Vec::new(),
            });
        });
        let result = work();
        let state = STATE.take();
        self.reached |= state.is_some_and(|state| state.count >= self.at);
        result
    }
}

/// Calls `test` with every fault at every operation, until the work of [`Injection::run`] ends before the fault.
///
/// # Panics
/// There are more than 10,000 operations, or `test` did not call [`Injection::run`] once with an operation.
pub fn for_each_fault(mut test: impl FnMut(&mut Injection)) {
    for fault in Fault::ALL {
        for at in 1.. {
            assert!(at < 10_000, "the work does not end");
            let mut injection = Injection {
                fault,
                at,
                reached: false,
            };
            test(&mut injection);
            if !injection.reached {
                assert!(at > 1, "the work has no operation");
                break;
            }
        }
    }
}

fn killed() -> io::Error {
    io::Error::other("the process was killed")
}

pub(super) fn begin(operation: Operation) -> io::Result<Effect> {
    STATE.with_borrow_mut(|state| {
        let Some(state) = state else {
            return Ok(Effect::Complete);
        };
        state.count += 1;
        let (at, count) = (state.at, state.count);
        if count < at {
            return Ok(Effect::Complete);
        }
        let first = count == at;
        let error = match state.fault {
            Fault::ShortWrite if first => return Ok(Effect::Half(None)),
            Fault::StaysFull if operation == Operation::Release => return Ok(Effect::Complete),
            Fault::NoSpace if first => io::ErrorKind::StorageFull.into(),
            Fault::StaysFull => io::ErrorKind::StorageFull.into(),
            Fault::InputOutput if first => io::Error::from_raw_os_error(5),
            Fault::Kill if first => killed(),
            Fault::PowerCut if first => {
                for (file, flushed) in &state.files {
                    let length = file.metadata().map_or(0, |meta| meta.len());
                    file.set_len(length.min(*flushed))?;
                }
                return Err(killed());
            }
            Fault::Kill | Fault::PowerCut => return Err(killed()),
            Fault::ShortWrite | Fault::NoSpace | Fault::InputOutput => return Ok(Effect::Complete),
        };
        match operation {
            Operation::Write => Ok(Effect::Half(Some(error))),
            Operation::Change | Operation::Release => Err(error),
        }
    })
}

/// Called when a file is opened for writing.
pub(super) fn opened(file: &File) {
    STATE.with_borrow_mut(|state| {
        if let Some(state) = state
            && let (Ok(clone), Ok(meta)) = (file.try_clone(), file.metadata())
        {
            state.files.push((clone, meta.len()));
        }
    });
}

/// Called when a file was flushed.
pub(super) fn flushed(file: &File) {
    STATE.with_borrow_mut(|state| {
        let (Some(state), Ok(meta)) = (state, file.metadata()) else {
            return;
        };
        for (open, length) in &mut state.files {
            if open.metadata().is_ok_and(|open| is_same(&open, &meta)) {
                *length = meta.len();
            }
        }
    });
}

#[cfg(unix)]
fn is_same(a: &std::fs::Metadata, b: &std::fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

#[cfg(not(unix))]
fn is_same(a: &std::fs::Metadata, b: &std::fs::Metadata) -> bool {
    a.len() == b.len() && a.created().ok() == b.created().ok()
}
