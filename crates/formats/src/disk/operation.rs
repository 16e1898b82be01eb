//! What is done to a file or folder, and how much of it takes place.

use std::io;

/// One operation, as `faults` counts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    /// Takes space: creates a file or folder, renames, flushes.
    Change,
    /// Writes bytes into a file.
    Write,
    /// Gives space back: removes or truncates.
    Release,
}

/// How much of an operation takes place.
#[derive(Debug)]
pub(super) enum Effect {
    Complete,
    /// A write stores half of its bytes, then fails with this error, or returns the short length if there is none.
    #[cfg_attr(not(any(test, feature = "faults")), expect(dead_code))]
    Half(Option<io::Error>),
}
