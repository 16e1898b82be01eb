//! The flag that ends long work: set by another thread when nobody waits for the result any more.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::DatasetError;

/// A flag that is never set, for work that runs to its end.
pub static NEVER: AtomicBool = AtomicBool::new(false);

/// Checks the flag; work calls it between two rows.
///
/// # Errors
/// [`DatasetError::Stopped`] once the flag is set.
pub fn check_stop(stop: &AtomicBool) -> Result<(), DatasetError> {
    match stop.load(Ordering::Relaxed) {
        true => Err(DatasetError::Stopped),
        false => Ok(()),
    }
}
