//! Files whose readers wait, as on a slow disk, for tests. Compiled only for tests (the feature `faults`).

use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// All slow files of the process.
static SLOW: Mutex<Vec<Arc<Gate>>> = Mutex::new(Vec::new());

#[derive(Debug)]
struct Gate {
    path: PathBuf,
    /// How many readers have come, and whether they may read.
    state: Mutex<(usize, bool)>,
    changed: Condvar,
}

/// While it exists, [`open`](super::open) of its path waits. Dropped, it lets its readers continue.
#[derive(Debug)]
pub struct SlowFile(Arc<Gate>);

impl SlowFile {
    /// Makes the readers of `path`, spelled as they spell it, wait.
    #[must_use]
    pub fn new(path: &Path) -> SlowFile {
        let gate = Arc::new(Gate {
            path: path.to_owned(),
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let mut slow = SLOW.lock().unwrap_or_else(PoisonError::into_inner);
        slow.push(Arc::clone(&gate));
        SlowFile(gate)
    }

    /// Waits until someone opens the file, for at most `time`. Returns whether someone has.
    #[must_use]
    pub fn has_reader_within(&self, time: Duration) -> bool {
        let state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        let none = |state: &mut (usize, bool)| state.0 == 0;
        let waited = self.0.changed.wait_timeout_while(state, time, none);
        waited.unwrap_or_else(PoisonError::into_inner).0.0 > 0
    }
}

impl Drop for SlowFile {
    fn drop(&mut self) {
        let mut slow = SLOW.lock().unwrap_or_else(PoisonError::into_inner);
        slow.retain(|gate| !Arc::ptr_eq(gate, &self.0));
        drop(slow);
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.1 = true;
        drop(state);
        self.0.changed.notify_all();
    }
}

/// Waits while the file is slow.
pub(super) fn wait(path: &Path) {
    let slow = SLOW.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(gate) = slow.iter().find(|gate| gate.path == path).cloned() else {
        return;
    };
    drop(slow);
    let mut state = gate.state.lock().unwrap_or_else(PoisonError::into_inner);
    state.0 += 1;
    gate.changed.notify_all();
    let waits = |state: &mut (usize, bool)| !state.1;
    drop(gate.changed.wait_while(state, waits));
}
