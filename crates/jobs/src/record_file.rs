//! Record files: written in one step and flushed to disk. Also fresh ids and the current time for records.

use std::io::{self, Write as _};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use formats::{atomic_file, disk};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::JobError;

/// The largest record that is read, in bytes. Records that Lory writes are far smaller.
pub(crate) const MAX_RECORD: u64 = 64 << 20;

/// The largest place in the order of arrival that a record can have. Half of all numbers are left for the records that follow.
const LAST_NUMBER: u64 = u64::MAX / 2;

/// Checks the place in the order of arrival of a record that was read.
///
/// # Errors
/// No record gets this number. The next one would come after it, and at the largest number there is no next one.
pub(crate) fn check_number(number: u64) -> Result<(), String> {
    match number <= LAST_NUMBER {
        true => Ok(()),
        false => Err(format!(
            "its record has the number {number}; numbers end at {LAST_NUMBER}"
        )),
    }
}

/// Writes `value` to `path` as JSON, in one step.
pub(crate) fn write(path: &Path, value: &impl Serialize) -> Result<(), JobError> {
    let text = serde_json::to_vec_pretty(value).map_err(io::Error::other);
    text.and_then(|text| atomic_file::replace_private(path, |file| file.write_all(&text)))
        .map_err(JobError::io(path))
}

/// Reads a value that [`write`] wrote.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<T, JobError> {
    let text = disk::read(path, MAX_RECORD).map_err(JobError::io(path))?;
    serde_json::from_slice(&text).map_err(|error| JobError::Damaged {
        path: path.to_owned(),
        message: error.to_string(),
    })
}

/// A random id that starts with `prefix`.
pub(crate) fn fresh_id(prefix: &str) -> Result<String, JobError> {
    let mut bytes = [0u8; 12];
    getrandom::fill(&mut bytes).map_err(JobError::Random)?;
    Ok(format!(
        "{prefix}{}",
        base16ct::lower::encode_string(&bytes)
    ))
}

/// Whether `name` is an id of [`fresh_id`].
pub(crate) fn is_id(name: &str, prefix: &str) -> bool {
    let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    let digits = name.strip_prefix(prefix);
    digits.is_some_and(|digits| digits.len() == 24 && digits.bytes().all(hex))
}

/// The current Unix time, in seconds.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
