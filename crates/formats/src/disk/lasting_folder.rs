//! A folder that must not disappear while the process writes into it. If it was removed, with all that was in it, a writer that makes it
//! anew would store what the next start does not find, or finds incomplete.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// See the module. Clones share what they have seen.
#[derive(Debug, Clone)]
pub struct LastingFolder {
    path: PathBuf,
    /// The deepest folder on the way to `path` that has existed.
    seen: Arc<Mutex<PathBuf>>,
}

impl LastingFolder {
    /// The folder at `path`. If it does not exist yet, the nearest folder above it counts until then.
    #[must_use]
    pub fn new(path: &Path) -> LastingFolder {
        LastingFolder {
            path: path.to_owned(),
            seen: Arc::new(Mutex::new(nearest(path))),
        }
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Checks that the folder is still there, if it has existed.
    ///
    /// # Errors
    /// It was removed; the message names its last part and says what to do.
    pub fn check(&self) -> io::Result<()> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if !seen.is_dir() {
            return Err(removed(&self.path));
        }
        *seen = nearest(&self.path);
        Ok(())
    }

    /// Creates the folder if it has never existed. Only its owner can read it then.
    ///
    /// # Errors
    /// It was removed, or cannot be created.
    pub fn create(&self) -> io::Result<()> {
        self.check()?;
        super::create_private_folders(&self.path)?;
        self.check()
    }
}

/// Whether an error is that of [`LastingFolder::check`].
#[must_use]
pub fn is_removed(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<Removed>())
}

/// The error of [`LastingFolder::check`].
#[derive(Debug, thiserror::Error)]
#[error(
    "the folder {name} was removed while the server ran; restore it with its content, or restart the server to begin with a new one"
)]
struct Removed {
    name: String,
}

fn removed(path: &Path) -> io::Error {
    let name = path.file_name().unwrap_or_default();
    io::Error::other(Removed {
        name: name.to_string_lossy().into_owned(),
    })
}

/// The deepest folder on the way to `path` that exists.
fn nearest(path: &Path) -> PathBuf {
    let found = path.ancestors().find(|folder| folder.is_dir());
    match found {
        Some(folder) => folder.to_owned(),
        // A relative path.
        None => PathBuf::from("."),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[cfg(unix)]
    #[test]
    fn only_the_owner_can_read_what_is_created() {
        use std::os::unix::fs::PermissionsExt as _;
        let home = tempfile::tempdir().unwrap();
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        let [shared, new] = ["shared", "new"].map(|name| home.path().join(name));
        fs::create_dir(&shared).unwrap();
        fs::set_permissions(&shared, fs::Permissions::from_mode(0o755)).unwrap();
        for root in [&shared, &new] {
            LastingFolder::new(&root.join("votes")).create().unwrap();
            assert_eq!(mode(&root.join("votes")), 0o700);
        }
        // A folder that exists keeps its permissions.
        assert_eq!((mode(&shared), mode(&new)), (0o755, 0o700));
        LastingFolder::new(&shared).create().unwrap();
        assert_eq!(mode(&shared), 0o755);
    }

    #[test]
    fn removed_folder_is_reported_and_not_made_again() {
        let home = tempfile::tempdir().unwrap();
        let root = home.path().join("home");
        // Before its first use, the folder above it counts.
        fs::create_dir(&root).unwrap();
        let folder = LastingFolder::new(&root.join("data/votes"));
        fs::remove_dir(&root).unwrap();
        let error = folder.create().unwrap_err();
        assert!(
            is_removed(&error) && error.to_string().contains("votes"),
            "{error}"
        );
        assert!(!root.exists());
        // Afterwards the folder itself.
        fs::create_dir(&root).unwrap();
        folder.create().unwrap();
        fs::remove_dir_all(root.join("data")).unwrap();
        assert!(is_removed(&folder.create().unwrap_err()));
        assert!(!root.join("data").exists());
        fs::create_dir_all(root.join("data/votes")).unwrap();
        folder.create().unwrap();
    }
}
