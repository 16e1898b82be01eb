//! What a job's files have in common: they appear whole or not at all, and outlast a power cut.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::JobError;

/// Puts `value` at `path`, in one step.
pub(super) fn put(path: &Path, value: &impl Serialize) -> Result<(), JobError> {
    let text = serde_json::to_vec_pretty(value).map_err(io::Error::other);
    let write = |text: Vec<u8>| -> io::Result<()> {
        let folder = path.parent().unwrap_or(Path::new("."));
        let mut beside = tempfile::NamedTempFile::new_in(folder)?;
        beside.write_all(&text)?;
        beside.as_file().sync_all()?;
        beside.persist(path)?;
        // Systems that cannot sync a folder say so, which is no failure.
        if let Ok(folder) = File::open(folder) {
            let _ = folder.sync_all();
        }
        Ok(())
    };
    text.and_then(write).map_err(JobError::io(path))
}

/// What [`put`] wrote.
pub(super) fn get<T: DeserializeOwned>(path: &Path) -> Result<T, JobError> {
    let text = std::fs::read(path).map_err(JobError::io(path))?;
    serde_json::from_slice(&text).map_err(|error| JobError::Damaged {
        path: path.to_owned(),
        message: error.to_string(),
    })
}

/// An id that no other has, which begins with `kind`.
pub(super) fn fresh_id(kind: &str) -> Result<String, JobError> {
    let mut bytes = [0u8; 12];
    getrandom::fill(&mut bytes).map_err(JobError::Random)?;
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("{kind}{digits}"))
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
