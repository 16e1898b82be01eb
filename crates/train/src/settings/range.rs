//! The range check that all settings share.

use std::fmt::Display;
use std::ops::RangeInclusive;

use crate::error::TrainError;

/// Checks that a setting is in its range.
///
/// # Errors
/// [`TrainError::Setting`], which names the setting and its range.
pub(super) fn check_range<T: PartialOrd + Display>(
    name: &'static str,
    value: T,
    range: RangeInclusive<T>,
) -> Result<(), TrainError> {
    if range.contains(&value) {
        return Ok(());
    }
    let message = format!(
        "is {value}; it must be between {} and {}",
        range.start(),
        range.end()
    );
    Err(TrainError::Setting { name, message })
}
