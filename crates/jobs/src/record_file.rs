//! JobRecord files: written in one step and flushed to disk. Also fresh ids and the time of day for records.

use std::io::{self, Write as _};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use formats::atomic_file;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::JobError;

/// Puts `value` at `path`, in one step.
pub(crate) fn write(path: &Path, value: &impl Serialize) -> Result<(), JobError> {
    let text = serde_json::to_vec_pretty(value).map_err(io::Error::other);
    text.and_then(|text| atomic_file::replace_private(path, |file| file.write_all(&text)))
        .map_err(JobError::io(path))
}

/// What [`write`] wrote.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<T, JobError> {
    let text = std::fs::read(path).map_err(JobError::io(path))?;
    serde_json::from_slice(&text).map_err(|error| JobError::Damaged {
        path: path.to_owned(),
        message: error.to_string(),
    })
}

/// An id that no other has, which begins with `kind`.
pub(crate) fn fresh_id(kind: &str) -> Result<String, JobError> {
    let mut bytes = [0u8; 12];
    getrandom::fill(&mut bytes).map_err(JobError::Random)?;
    Ok(format!("{kind}{}", base16ct::lower::encode_string(&bytes)))
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
