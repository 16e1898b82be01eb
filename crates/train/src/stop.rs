//! The flag that ends long work: set by another thread when nobody waits for the result any more.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::TrainError;

/// A flag that is never set, for work that runs to its end.
pub static NEVER: AtomicBool = AtomicBool::new(false);

/// Checks the flag; work calls it between two rows.
///
/// # Errors
/// [`TrainError::Stopped`] once the flag is set.
pub(crate) fn check_stop(stop: &AtomicBool) -> Result<(), TrainError> {
    match stop.load(Ordering::Relaxed) {
        true => Err(TrainError::Stopped),
        false => Ok(()),
    }
}
