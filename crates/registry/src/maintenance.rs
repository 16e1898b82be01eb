//! Maintenance of a registry's blobs: verification and garbage collection. Adds no entry to the log.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::blob;
use crate::error::RegistryError;
use crate::registry::{Registry, now};
use crate::spec::PersonaRef;

/// The result of verifying one adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct VerifiedAdapter {
    /// Its content hash.
    pub sha256: String,
    /// The versions that use it.
    pub used_by: Vec<PersonaRef>,
    /// What is wrong with it; none if it is intact.
    pub problem: Option<String>,
}

/// The result of a garbage collection.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct CollectedGarbage {
    /// Adapters that were removed, or would be.
    pub removed: Vec<String>,
    /// Unused adapters that are too young to be removed.
    pub too_young: Vec<String>,
    /// The number of adapters in use.
    pub used: usize,
}

impl Registry {
    /// Reads every adapter in use and checks its hash.
    ///
    /// # Errors
    /// [`RegistryError::Store`]. A damaged adapter is not an error; the list reports it.
    pub fn verify(&self) -> Result<Vec<VerifiedAdapter>, RegistryError> {
        let state = self.refresh()?;
        let verify = |(sha256, used_by): (&str, Vec<PersonaRef>)| {
            let problem = match blob::read(&self.store, sha256) {
                Ok(Some(_)) => None,
                Ok(None) => Some("is missing".to_owned()),
                Err(RegistryError::Corrupt { found, .. }) => {
                    Some(format!("is corrupt: its content has the hash {found}"))
                }
                Err(error) => return Err(error),
            };
            Ok(VerifiedAdapter {
                sha256: sha256.to_owned(),
                used_by,
                problem,
            })
        };
        state.adapters().into_iter().map(verify).collect()
    }

    /// Removes the adapters that no version uses and that were written, and last used, longer ago than `older_than`: a publisher
    /// may have stored an adapter and not yet its entry.
    ///
    /// # Errors
    /// [`RegistryError::Store`].
    pub fn collect_garbage(
        &self,
        older_than: Duration,
        dry_run: bool,
    ) -> Result<CollectedGarbage, RegistryError> {
        let mut ages: BTreeMap<String, u64> = BTreeMap::new();
        for sha256 in self.store.folders(blob::FOLDER)? {
            if blob::digest(&sha256).is_some() {
                let written = self.last_written(&sha256)?;
                ages.insert(sha256, written);
            }
        }
        // After listing, so that an adapter published meanwhile counts as used.
        let state = self.refresh()?;
        if state.head == 0 && !ages.is_empty() {
            return Err(RegistryError::NoLog {
                name: self.store.name.clone(),
            });
        }
        let used = state.adapters();
        let mut collected = CollectedGarbage {
            used: used.len(),
            ..CollectedGarbage::default()
        };
        let before = now().saturating_sub(older_than.as_secs());
        for (sha256, written) in ages {
            if used.contains_key(sha256.as_str()) {
                continue;
            }
            if written.max(state.last_used(&sha256).unwrap_or(0)) > before {
                collected.too_young.push(sha256);
                continue;
            }
            if !dry_run {
                // Another publisher may be about to use it again.
                let used_again = self.refresh()?.adapters().contains_key(sha256.as_str());
                if used_again || self.last_written(&sha256)? != written {
                    collected.too_young.push(sha256);
                    continue;
                }
                for file in blob::FILES {
                    self.store.delete(&blob::path(&sha256, file))?;
                }
            }
            collected.removed.push(sha256);
        }
        Ok(collected)
    }

    /// When the newest of a blob's files was written, in seconds since 1970.
    fn last_written(&self, sha256: &str) -> Result<u64, RegistryError> {
        let files = self.store.list(&format!("{}/{sha256}", blob::FOLDER))?;
        Ok(files.iter().map(|file| file.modified).max().unwrap_or(0))
    }
}
