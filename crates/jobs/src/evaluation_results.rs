//! Stored results of evaluations, a file each: `evaluations/<20 digits>.json`; the digits are the Unix time.
//!
//! A result that a key requested has the field `owner` and stays as long as the record of its evaluation. Of the others, which `lory eval` and
//! servers without keys store, the latest stay.

use std::fs;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use formats::atomic_file;
use formats::disk::{self, LastingFolder};
use serde_json::{Value, json};

/// Why a result is not stored or not found.
#[derive(Debug, thiserror::Error)]
pub enum ResultError {
    /// There is no folder.
    #[error(
        "there is no folder for votes and evaluations; set LORY_HOME to a folder and start the server again"
    )]
    Off,
    /// There is no such evaluation.
    #[error("there is no evaluation {0:?}; GET /v1/evaluations lists them")]
    Unknown(String),
    /// A file is not JSON.
    #[error("{}:{line}: {message}", path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// The folder cannot be used.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system reported.
        source: std::io::Error,
    },
}

/// The largest result that is read, in bytes.
const MAX_RESULT: u64 = 64 << 20;
/// The most stored results without an owner; the oldest are removed.
pub const MAX_STORED: usize = 50;

/// The folder of results.
#[derive(Debug, Clone)]
pub struct EvaluationResults {
    folder: PathBuf,
    lasting: LastingFolder,
}

impl EvaluationResults {
    /// The results in `folder`, which is created when the first is stored.
    #[must_use]
    pub fn new(folder: &Path) -> EvaluationResults {
        let folder = folder.join("evaluations");
        EvaluationResults {
            lasting: LastingFolder::new(&folder),
            folder,
        }
    }

    /// The folder of the results.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    fn io(&self) -> impl Fn(std::io::Error) -> ResultError + '_ {
        |source| ResultError::Io {
            path: self.folder.clone(),
            source,
        }
    }

    /// Stores a result with this Unix time, or the next second that has no result yet, and returns its id. Adds the fields `id` and `time`.
    ///
    /// # Errors
    /// [`ResultError::Io`].
    pub fn store(&self, time: u64, result: Value) -> Result<String, ResultError> {
        self.store_of(None, time, result)
    }

    /// As [`EvaluationResults::store`], for the key `owner`; its results are not removed by later ones.
    ///
    /// # Errors
    /// [`ResultError::Io`].
    pub fn store_of(
        &self,
        owner: Option<&str>,
        mut time: u64,
        mut result: Value,
    ) -> Result<String, ResultError> {
        self.lasting.create().map_err(self.io())?;
        let mut id = format!("{time:020}");
        while self.path(&id).exists() {
            time += 1;
            id = format!("{time:020}");
        }
        result["id"] = json!(id);
        result["time"] = json!(time);
        if let Some(owner) = owner {
            result["owner"] = json!(owner);
        }
        let text = result.to_string();
        let written = atomic_file::replace(&self.path(&id), |file| file.write_all(text.as_bytes()));
        if let Err(error) = written {
            // It may have its name and not be flushed.
            self.remove(&id);
            return Err(self.io()(error));
        }
        if owner.is_none() {
            // A result that cannot be read may be anyone's.
            let has_no_owner = |id: &&String| {
                let read = self.read(id);
                read.is_ok_and(|result| result["owner"].is_null())
            };
            // The result is stored; old ones that cannot be listed stay until the next.
            let ids = self.ids().unwrap_or_default();
            for old in ids.iter().filter(has_no_owner).skip(MAX_STORED) {
                self.remove(old);
            }
        }
        Ok(id)
    }

    /// Removes a result, if it is there.
    pub(crate) fn remove(&self, id: &str) {
        let path = self.path(id);
        match disk::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                tracing::warn!("{}: {error}", path.display());
            }
            _ => {}
        }
    }

    fn path(&self, id: &str) -> PathBuf {
        self.folder.join(format!("{id}.json"))
    }

    /// The ids, the newest first.
    ///
    /// # Errors
    /// [`ResultError::Io`].
    pub fn ids(&self) -> Result<Vec<String>, ResultError> {
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(self.io()(error)),
        };
        let mut ids = Vec::new();
        for entry in entries {
            let name = entry.map_err(self.io())?.file_name();
            let id = name.to_str().and_then(|name| name.strip_suffix(".json"));
            ids.extend(id.filter(|id| is_id(id)).map(str::to_owned));
        }
        ids.sort_unstable_by(|a, b| b.cmp(a));
        Ok(ids)
    }

    /// Reads one result.
    ///
    /// # Errors
    /// [`ResultError::Unknown`], [`ResultError::Broken`], [`ResultError::Io`].
    pub fn read(&self, id: &str) -> Result<Value, ResultError> {
        let unknown = || ResultError::Unknown(id.chars().take(40).collect());
        if !is_id(id) {
            return Err(unknown());
        }
        let path = self.path(id);
        let text = match disk::read(&path, MAX_RESULT) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(unknown()),
            Err(error) => return Err(self.io()(error)),
        };
        serde_json::from_slice(&text).map_err(|error| ResultError::Broken {
            path,
            line: error.line(),
            message: error.to_string(),
        })
    }
}

fn is_id(text: &str) -> bool {
    text.len() == 20 && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use formats::disk::faults::for_each_fault;

    use super::*;

    #[test]
    fn results_of_a_key_are_not_removed_by_later_ones() {
        let folder = tempfile::tempdir().unwrap();
        let results = EvaluationResults::new(folder.path());
        let own = results.store_of(Some("acme"), 1, json!({})).unwrap();
        for time in 2..=MAX_STORED as u64 + 3 {
            results.store(time, json!({})).unwrap();
        }
        for time in 1000..1000 + MAX_STORED as u64 {
            results.store_of(Some("other"), time, json!({})).unwrap();
        }
        let ids = results.ids().unwrap();
        assert_eq!(ids.len(), 2 * MAX_STORED + 1);
        assert_eq!(results.read(&own).unwrap()["owner"], json!("acme"));
        results.remove(&own);
        assert!(matches!(results.read(&own), Err(ResultError::Unknown(_))));
        results.remove(&own);
    }

    #[test]
    fn only_the_latest_results_stay() {
        let folder = tempfile::tempdir().unwrap();
        let results = EvaluationResults::new(folder.path());
        assert!(results.ids().unwrap().is_empty());
        for time in 0..MAX_STORED as u64 + 2 {
            results.store(time, json!({"base": "b"})).unwrap();
        }
        // A second result of the same second.
        let last = MAX_STORED as u64 + 1;
        let next = results.store(last, json!({"base": "c"})).unwrap();
        assert_eq!(next, format!("{:020}", last + 1));
        let ids = results.ids().unwrap();
        assert_eq!(ids.len(), MAX_STORED);
        assert_eq!(results.read(&ids[1]).unwrap()["base"], json!("b"));
        assert_eq!(
            results.read(&ids[0]).unwrap()["time"],
            json!(MAX_STORED + 2)
        );
        for wrong in ["", "../votes", &"0".repeat(20)] {
            assert!(
                matches!(results.read(wrong), Err(ResultError::Unknown(_))),
                "{wrong}"
            );
        }
    }

    #[test]
    fn stored_results_are_complete_after_every_fault() {
        for_each_fault(|injection| {
            let folder = tempfile::tempdir().unwrap();
            let results = EvaluationResults::new(folder.path());
            let old = results.store(1, json!({"base": "old"})).unwrap();
            let new = injection.run(|| results.store(1, json!({"base": "new"})));
            let ids = results.ids().unwrap();
            for id in &ids {
                results.read(id).unwrap();
            }
            assert!(ids.contains(&old), "{injection:?}");
            assert!(new.is_err() || ids.len() == 2, "{injection:?}");
            // Nobody would remove a result that has no evaluation.
            if new.is_err() && !injection.fault.ends_the_process() {
                assert_eq!(ids, std::slice::from_ref(&old), "{injection:?}");
            }
            let next = results.store(9, json!({"base": "next"})).unwrap();
            assert_eq!(results.read(&next).unwrap()["base"], json!("next"));
        });
    }
}
