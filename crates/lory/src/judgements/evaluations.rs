//! The results of `lory eval`, a file each: `evaluations/<20 digits>.json`, the digits being the Unix time.

use std::fs;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use formats::atomic_file;
use serde_json::{Value, json};

use super::JudgementError;

/// How many are kept; of more the oldest are removed.
pub const MAX_KEPT: usize = 50;

/// The folder of results.
#[derive(Debug, Clone)]
pub struct Evaluations {
    folder: PathBuf,
}

impl Evaluations {
    /// Those in a folder, which need not be there yet.
    #[must_use]
    pub fn new(folder: &Path) -> Evaluations {
        Evaluations {
            folder: folder.join("evaluations"),
        }
    }

    fn io(&self) -> impl Fn(std::io::Error) -> JudgementError + '_ {
        |source| JudgementError::Io {
            path: self.folder.clone(),
            source,
        }
    }

    /// Keeps a result of this Unix time, or of the next second that has none yet, under its id, which it gets as a field.
    ///
    /// # Errors
    /// [`JudgementError::Io`].
    pub fn keep(&self, mut time: u64, mut result: Value) -> Result<String, JudgementError> {
        fs::create_dir_all(&self.folder).map_err(self.io())?;
        let mut id = format!("{time:020}");
        while self.path(&id).exists() {
            time += 1;
            id = format!("{time:020}");
        }
        result["id"] = json!(id);
        result["time"] = json!(time);
        let text = result.to_string();
        atomic_file::replace(&self.path(&id), |file| file.write_all(text.as_bytes()))
            .map_err(self.io())?;
        for old in self.ids()?.iter().skip(MAX_KEPT) {
            // The next one tries again.
            let _ = fs::remove_file(self.path(old));
        }
        Ok(id)
    }

    fn path(&self, id: &str) -> PathBuf {
        self.folder.join(format!("{id}.json"))
    }

    /// Their ids, the newest first.
    ///
    /// # Errors
    /// [`JudgementError::Io`].
    pub fn ids(&self) -> Result<Vec<String>, JudgementError> {
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

    /// One of them, whole.
    ///
    /// # Errors
    /// [`JudgementError::Unknown`], [`JudgementError::Broken`], [`JudgementError::Io`].
    pub fn read(&self, id: &str) -> Result<Value, JudgementError> {
        let unknown = || JudgementError::Unknown(id.chars().take(40).collect());
        if !is_id(id) {
            return Err(unknown());
        }
        let path = self.path(id);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(unknown()),
            Err(error) => return Err(self.io()(error)),
        };
        serde_json::from_slice(&text).map_err(|error| JudgementError::Broken {
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
    use super::*;

    #[test]
    fn the_latest_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let kept = Evaluations::new(folder.path());
        assert!(kept.ids().unwrap().is_empty());
        for time in 0..MAX_KEPT as u64 + 2 {
            kept.keep(time, json!({"base": "b"})).unwrap();
        }
        // Of the same second.
        let last = MAX_KEPT as u64 + 1;
        let next = kept.keep(last, json!({"base": "c"})).unwrap();
        assert_eq!(next, format!("{:020}", last + 1));
        let ids = kept.ids().unwrap();
        assert_eq!(ids.len(), MAX_KEPT);
        assert_eq!(kept.read(&ids[1]).unwrap()["base"], json!("b"));
        assert_eq!(kept.read(&ids[0]).unwrap()["time"], json!(MAX_KEPT + 2));
        for wrong in ["", "../votes", &"0".repeat(20)] {
            assert!(
                matches!(kept.read(wrong), Err(JudgementError::Unknown(_))),
                "{wrong}"
            );
        }
    }
}
