//! Why an upload is refused or not found.

use std::path::PathBuf;

use auth::QuotaExceeded;
use formats::peft::OtherFormat;
use registry::RegistryError;

/// Why an upload is refused or not found.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// There is no folder for uploads.
    #[error(
        "there is nowhere to keep uploads; set LORY_HOME to a folder and start the server again"
    )]
    Off,
    /// It is not an archive, or a broken one.
    #[error("the upload is not a readable zip archive: {0}")]
    Archive(String),
    /// A file in it is refused.
    #[error("the archive is refused: {name:?} {message}")]
    Entry {
        /// The name in the archive.
        name: String,
        /// Why.
        message: String,
    },
    /// A file that makes an adapter is not in it.
    #[error(
        "the archive has no {file}; put adapter_config.json and adapter_model.safetensors into it, as PEFT saves them"
    )]
    Missing {
        /// The file.
        file: &'static str,
    },
    /// It has an adapter in a format that is not read.
    #[error("the archive has no adapter_model.safetensors: {0}")]
    OtherFormat(OtherFormat),
    /// The two files of an adapter are not in one folder.
    #[error(
        "adapter_config.json and adapter_model.safetensors are in different folders of the archive; put both into one"
    )]
    Apart,
    /// Several adapters are at the same depth.
    #[error("the archive has {count} adapters: {}; send one of them", folders.join(", "))]
    Several {
        /// Their folders; the first few.
        folders: Vec<String>,
        /// How many there are.
        count: usize,
    },
    /// It is too large, packed or unpacked.
    #[error("{name} is larger than {limit} bytes, the limit")]
    TooLarge {
        /// The archive, or the file in it.
        name: String,
        /// The limit.
        limit: u64,
    },
    /// All keys have too many uploads.
    #[error(
        "the server has {limit} uploaded adapters that are not published, its limit; publish or delete one, or try again in an hour, when \
         they expire"
    )]
    TooMany {
        /// The limit.
        limit: usize,
    },
    /// The key's uploads would have too many bytes.
    #[error(transparent)]
    Quota(#[from] QuotaExceeded),
    /// There is no such upload.
    #[error("there is no upload {sha256}; it may have been published or forgotten: send it again")]
    Unknown {
        /// The requested hash.
        sha256: String,
    },
    /// The folder of uploads was removed.
    #[error(transparent)]
    Removed(std::io::Error),
    /// The folder of uploads cannot be used.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system reported.
        source: std::io::Error,
    },
    /// The files are not an adapter.
    #[error(transparent)]
    Adapter(#[from] RegistryError),
}

impl UploadError {
    /// The message for clients, without the folders of this machine. An archive has no folders but its own.
    #[must_use]
    pub fn client_message(&self) -> String {
        let path = match self {
            UploadError::Adapter(RegistryError::Adapter(error)) => error.path(),
            UploadError::Adapter(RegistryError::TooLarge { path, .. })
            | UploadError::Io { path, .. } => Some(path.as_path()),
            UploadError::Adapter(error) => return error.client_message(),
            _ => None,
        };
        let text = self.to_string();
        let Some(path) = path else { return text };
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        text.replace(&path.display().to_string(), &name)
    }
}
