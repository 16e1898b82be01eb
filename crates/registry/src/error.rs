//! What can be wrong with personas, with asking for one, and with the registry of published ones.

use std::path::PathBuf;

use formats::peft::PeftError;

use crate::spec::SpecError;

/// A personas folder that cannot be used. Every message names the file, and the line where there is one.
#[derive(Debug, thiserror::Error)]
pub enum PersonaError {
    /// A file or folder cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A folder whose name is no persona's.
    #[error(
        "{}: a persona's name has 1 to 64 of a-z, 0-9, - and _, and begins with a letter or a digit; rename the folder",
        path.display()
    )]
    Name {
        /// The folder.
        path: PathBuf,
    },
    /// A folder without `persona.toml`.
    #[error("{}: has no persona.toml; add one, or move the folder elsewhere", path.display())]
    NoFile {
        /// The folder.
        path: PathBuf,
    },
    /// `persona.toml` says something that is not understood.
    #[error("{}:{line}: {message}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Its line, from 1.
        line: usize,
        /// What is wrong, and what would be right.
        message: String,
    },
    /// The adapter's files cannot be read.
    #[error(transparent)]
    Adapter(#[from] PeftError),
}

/// What went wrong with the registry.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// What was named is no place for a registry.
    #[error("registry {text}: {message}")]
    Location {
        /// What was named.
        text: String,
        /// What would be right.
        message: String,
    },
    /// The store failed.
    #[error("cannot {verb} {path}: {source}")]
    Store {
        /// What was tried.
        verb: &'static str,
        /// With what.
        path: String,
        /// What the store said.
        source: Box<object_store::Error>,
    },
    /// A folder of this machine cannot be used.
    #[error("{}: {source}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// An entry of the log that cannot be followed.
    #[error("{path}: {message}")]
    Entry {
        /// Where it lies.
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
        /// What it stands for, if it is an alias.
        alias: Option<String>,
    },
    /// The persona has no such version.
    #[error("persona {name} has no version {version}; there {}", versions(there))]
    NoVersion {
        /// The persona.
        name: String,
        /// The version.
        version: u32,
        /// The versions that there are, rising.
        there: Vec<u32>,
    },
    /// The change makes no sense as things are.
    #[error("{message}")]
    Refused {
        /// Why, and what would.
        message: String,
    },
    /// A name that should have been new.
    #[error("persona {name} is published already")]
    Exists {
        /// The name.
        name: String,
    },
    /// Others always came first.
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
    /// A blob that is not what its name says.
    #[error(
        "{path}: corrupt or overwritten, its content has the hash {found}; publish the same adapter again to restore it, or \
         roll back to another version"
    )]
    Corrupt {
        /// Where it lies; the path ends in the hash that it should have.
        path: String,
        /// The hash that it has.
        found: String,
    },
    /// A blob that is not there.
    #[error("{path}: missing; publish the same adapter again to restore it")]
    Missing {
        /// Where it should lie.
        path: String,
    },
}

/// Why an adapter that is known cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Its files cannot be read.
    #[error(transparent)]
    Adapter(#[from] PeftError),
    /// The files of a folder are not those that were there when its personas were read.
    #[error("{}: the files have changed since the start (now {found}); restart to use them", path.display())]
    Changed {
        /// The folder.
        path: PathBuf,
        /// The content hash now.
        found: String,
    },
    /// The registry cannot give it.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

/// Why a name leads to no persona.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum LookupError {
    /// The text does not name personas.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// No persona of this name.
    #[error("unknown persona `{name}`; {}", names_of(known))]
    Unknown {
        /// The name.
        name: String,
        /// The names that there are.
        known: Vec<String>,
    },
    /// An alias with a version of its own.
    #[error("`{alias}` stands for `{target}` and has no versions; ask `{target}` for one")]
    VersionOfAlias {
        /// The alias.
        alias: String,
        /// What it stands for.
        target: String,
    },
    /// The persona is there, this version of it is not.
    #[error("persona `{name}` has no version {version}; there {}", versions(there))]
    NoVersion {
        /// The persona.
        name: String,
        /// The version asked for.
        version: u32,
        /// The versions that there are, rising.
        there: Vec<u32>,
    },
}

/// How many names a message shows.
const SHOWN: usize = 20;

fn names_of(names: &[String]) -> String {
    match names {
        [] => "there are none".to_owned(),
        names if names.len() > SHOWN => {
            let shown = names[..SHOWN].join(", ");
            format!("the personas are {shown} and {} more", names.len() - SHOWN)
        }
        names => format!("the personas are {}", names.join(", ")),
    }
}

fn versions(there: &[u32]) -> String {
    match there {
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
