//! The crate's errors: of persona folders, of looking personas up, and of the registry.

use std::path::{Path, PathBuf};

use formats::peft::PeftError;
use formats::short_path::{short_path, shortened};

use crate::spec::SpecError;

/// A personas folder that cannot be used. Every message names the file, and the line where there is one.
#[derive(Debug, thiserror::Error)]
pub enum PersonaError {
    /// A file or folder cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// A folder whose name is not a valid persona name.
    #[error(
        "{}: a persona's name has 1 to 64 of a-z, 0-9, - and _, and begins with a letter or a digit; rename the folder",
        path.display()
    )]
    Name {
        /// The folder.
        path: PathBuf,
    },
    /// Two folders whose personas would have the same name.
    #[error("{}: would be the persona {name}, as {} is; rename the folder", path.display(), other.display())]
    SameName {
        /// The folder.
        path: PathBuf,
        /// The name.
        name: String,
        /// The folder of the persona with this name.
        other: PathBuf,
    },
    /// A folder without `persona.toml`.
    #[error("{}: has no persona.toml; add one, or move the folder elsewhere", path.display())]
    NoFile {
        /// The folder.
        path: PathBuf,
    },
    /// The path of an adapter, where nothing is.
    #[error("{}: no such folder", path.display())]
    NoFolder {
        /// The path.
        path: PathBuf,
    },
    /// The path of an adapter, which is a file.
    #[error("{}: is a file; name the folder that has adapter_config.json", path.display())]
    NotFolder {
        /// The file.
        path: PathBuf,
    },
    /// A folder without an adapter.
    #[error(
        "{}: has no adapter: adapter_config.json is missing there and in its folder adapter; name the folder that has adapter_config.json",
        path.display()
    )]
    NoAdapter {
        /// The folder.
        path: PathBuf,
    },
    /// `persona.toml` is not valid.
    #[error("{}:{line}: {message}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Its line, from 1.
        line: usize,
        /// What is wrong, and what to write instead.
        message: String,
    },
    /// The adapter's files cannot be read.
    #[error(transparent)]
    Adapter(#[from] PeftError),
}

/// Why an operation of the registry failed.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The text is not a location of a registry.
    #[error("registry {text}: {message}")]
    Location {
        /// The text.
        text: String,
        /// What to write instead.
        message: String,
    },
    /// The store failed.
    #[error("cannot {verb} {path}: {source}")]
    Store {
        /// The operation.
        verb: &'static str,
        /// Its path.
        path: String,
        /// The store's error.
        source: Box<object_store::Error>,
    },
    /// A folder of this machine cannot be used.
    #[error("{}: {source}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The registry is not the one that was read.
    #[error(
        "the registry {name} was removed or replaced while this process used it; restore it, or restart to use what is there now"
    )]
    Removed {
        /// Its folder or URL.
        name: String,
    },
    /// There are adapters, and nothing that says which are in use.
    #[error(
        "the registry {name} has adapters and no log; restore its log before adapters are removed"
    )]
    NoLog {
        /// Its folder or URL.
        name: String,
    },
    /// An entry of the log that cannot be applied.
    #[error("{path}: {message}")]
    LogEntry {
        /// Its path.
        path: String,
        /// What is wrong with it.
        message: String,
    },
    /// No persona of this name is published.
    #[error("no persona {name} is published{}", match alias {
        Some(target) => format!(": it is an alias of {target}"),
        None => "; lory persona list shows those that are".to_owned(),
    })]
    Unknown {
        /// The name.
        name: String,
        /// What it means, if it is an alias.
        alias: Option<String>,
    },
    /// The persona has no such version.
    #[error(
        "persona {name} has no version {version}; there {}",
        versions(available)
    )]
    NoVersion {
        /// The persona.
        name: String,
        /// The version.
        version: u32,
        /// The existing versions, in ascending order.
        available: Vec<u32>,
    },
    /// The change is not allowed in the current state.
    #[error("{message}")]
    Refused {
        /// Why, and what to do instead.
        message: String,
    },
    /// A name that was to be new.
    #[error("persona {name} is published already")]
    Exists {
        /// The name.
        name: String,
    },
    /// Other writers came first in every try.
    #[error("others keep publishing at the same moment; try again")]
    Contended,
    /// The adapter's files cannot be read.
    #[error(transparent)]
    Adapter(#[from] PeftError),
    /// The adapter's file is too large.
    #[error("{}: larger than the {limit} bytes that a registry takes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The most bytes.
        limit: u64,
    },
    /// A blob whose content does not have the hash in its path.
    #[error(
        "{path}: corrupt or overwritten: its content has the hash {found}; publish the same adapter again to restore it, or \
         roll back to another version"
    )]
    Corrupt {
        /// Its path, which ends in the expected hash.
        path: String,
        /// The hash of its content.
        found: String,
    },
    /// A blob that does not exist.
    #[error("{path}: missing; publish the same adapter again to restore it")]
    Missing {
        /// Its path.
        path: String,
    },
}

impl RegistryError {
    /// The message for clients, without the folders of this machine.
    #[must_use]
    pub fn client_message(&self) -> String {
        match self {
            RegistryError::Removed { .. } => {
                "the registry was removed or replaced while this process used it; restore it, or restart to use what is there now"
                    .to_owned()
            }
            RegistryError::NoLog { .. } => {
                "the registry has adapters and no log; restore its log before adapters are removed"
                    .to_owned()
            }
            RegistryError::Location { .. }
            | RegistryError::Store { .. }
            | RegistryError::Folder { .. }
            | RegistryError::LogEntry { .. } => {
                "the server cannot read or write its registry; its log has the reason".to_owned()
            }
            RegistryError::Adapter(error) => without_folders(error),
            RegistryError::TooLarge { path, .. } => shortened(&self.to_string(), path),
            RegistryError::Corrupt { path, .. } | RegistryError::Missing { path } => {
                // Also of a bucket's URL.
                self.to_string().replace(path, &short_path(Path::new(path)))
            }
            RegistryError::Unknown { .. }
            | RegistryError::NoVersion { .. }
            | RegistryError::Refused { .. }
            | RegistryError::Exists { .. }
            | RegistryError::Contended => self.to_string(),
        }
    }
}

fn without_folders(error: &PeftError) -> String {
    let text = error.to_string();
    error
        .path()
        .map_or_else(|| text.clone(), |path| shortened(&text, path))
}

/// Why a persona's adapter cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Its files cannot be read.
    #[error(transparent)]
    Adapter(#[from] PeftError),
    /// The files of a folder have changed since its personas were read.
    #[error("{}: the files have changed since the start (their hash is now {found}); restart to use them", path.display())]
    Changed {
        /// The folder.
        path: PathBuf,
        /// The content hash now.
        found: String,
    },
    /// The registry failed.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

impl ReadError {
    /// The message for clients, without the folders of this machine.
    #[must_use]
    pub fn client_message(&self) -> String {
        match self {
            ReadError::Adapter(error) => without_folders(error),
            ReadError::Changed { path, .. } => shortened(&self.to_string(), path),
            ReadError::Registry(error) => error.client_message(),
        }
    }
}

/// Why a spec cannot be resolved to personas.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum LookupError {
    /// The text is not a valid spec.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// No persona of this name.
    #[error("unknown persona `{name}`; {}", list_names(available))]
    Unknown {
        /// The name.
        name: String,
        /// The existing names.
        available: Vec<String>,
    },
    /// An alias with a version.
    #[error(
        "`{alias}` is an alias of `{target}` and has no versions; name a version of `{target}`"
    )]
    VersionOfAlias {
        /// The alias.
        alias: String,
        /// The persona that it means.
        target: String,
    },
    /// The persona exists, but not this version of it.
    #[error(
        "persona `{name}` has no version {version}; there {}",
        versions(available)
    )]
    NoVersion {
        /// The persona.
        name: String,
        /// The requested version.
        version: u32,
        /// The existing versions, in ascending order.
        available: Vec<u32>,
    },
}

/// The most names or versions that a message lists.
const SHOWN: usize = 20;

fn list_names(names: &[String]) -> String {
    match names {
        [] => "there are none".to_owned(),
        names if names.len() > SHOWN => {
            let shown = names[..SHOWN].join(", ");
            format!("the personas are {shown} and {} more", names.len() - SHOWN)
        }
        names => format!("the personas are {}", names.join(", ")),
    }
}

fn versions(available: &[u32]) -> String {
    match available {
        many if many.len() > SHOWN => {
            let newest = &many[many.len() - SHOWN..];
            let newest: Vec<String> = newest.iter().map(u32::to_string).collect();
            format!(
                "are {} and {} older ones",
                newest.join(", "),
                many.len() - SHOWN
            )
        }
        [one] => format!("is only version {one}"),
        many => {
            let many: Vec<String> = many.iter().map(u32::to_string).collect();
            format!("are {}", many.join(", "))
        }
    }
}
