//! Where Lory keeps its files: `LORY_HOME`, else the platform's folders. Knows the paths, not what the files mean.

use std::path::{Path, PathBuf};

/// The folders of one installation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    cache: PathBuf,
    data: PathBuf,
}

/// The user has no folder for files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this user has no home folder to keep files in; set LORY_HOME to a folder")]
pub struct NoHome;

impl Home {
    /// The folders of `LORY_HOME`; if it is not set, those of the platform.
    ///
    /// # Errors
    /// [`NoHome`] if `LORY_HOME` is not set and the platform has no folder for this user.
    pub fn find() -> Result<Self, NoHome> {
        if let Some(home) = std::env::var_os("LORY_HOME").filter(|home| !home.is_empty()) {
            return Ok(Self::at(Path::new(&home)));
        }
        let dirs = directories::ProjectDirs::from("", "", "lory").ok_or(NoHome)?;
        Ok(Self {
            cache: dirs.cache_dir().to_owned(),
            data: dirs.data_dir().to_owned(),
        })
    }

    /// A home with everything in one folder.
    #[must_use]
    pub fn at(dir: &Path) -> Self {
        Self {
            cache: dir.to_owned(),
            data: dir.to_owned(),
        }
    }

    /// The folder of a base that Lory fetched.
    #[must_use]
    pub fn base(&self, id: &str) -> PathBuf {
        self.cache.join("models").join(id)
    }

    /// The cache of quantized bases.
    #[must_use]
    pub fn quant_cache(&self) -> PathBuf {
        self.cache.join("quantized")
    }

    /// The folder of this installation's personas.
    #[must_use]
    pub fn personas(&self) -> PathBuf {
        self.data.join("personas")
    }

    /// The registry of this installation's published personas.
    #[must_use]
    pub fn registry(&self) -> PathBuf {
        self.data.join("registry")
    }

    /// The queue of training jobs, with their files.
    #[must_use]
    pub fn jobs(&self) -> PathBuf {
        self.data.join("jobs")
    }

    /// Results of evaluations, and votes.
    #[must_use]
    pub fn results(&self) -> PathBuf {
        self.data.join("judgements")
    }

    /// The inputs of `lory chat`.
    #[must_use]
    pub fn chat_history(&self) -> PathBuf {
        self.data.join("chat_history")
    }

    /// Uploaded adapters that are not published yet.
    #[must_use]
    pub fn uploads(&self) -> PathBuf {
        self.cache.join("uploads")
    }

    /// Copies of adapters from remote registries, by content hash.
    #[must_use]
    pub fn registry_cache(&self) -> PathBuf {
        self.cache.join("adapters")
    }
}
