//! What can be wrong with personas, and with asking for one.

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

fn names_of(names: &[String]) -> String {
    match names {
        [] => "there are none".to_owned(),
        names => format!("the personas are {}", names.join(", ")),
    }
}

fn versions(there: &[u32]) -> String {
    match there {
        [one] => format!("is only version {one}"),
        many => {
            let many: Vec<String> = many.iter().map(u32::to_string).collect();
            format!("are {}", many.join(", "))
        }
    }
}
