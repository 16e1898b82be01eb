//! Adapters that clients send: a zip archive of a PEFT folder, unpacked beside others that wait, looked at, and kept until it is
//! published or forgotten.
//!
//! An archive is a stranger's. Only the two files of an adapter are taken out of it, each up to its limit whatever the archive says
//! of its size, to names that are ours; a path that leads out of the archive, or a link, refuses it whole.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use formats::peft::{self, Dtype};
use registry::{AdapterContent, RegistryError};
use tempfile::{NamedTempFile, TempDir};
use zip::ZipArchive;

use crate::error::PublishError;
use crate::service::Service;

/// The most bytes of an archive.
pub const MAX_ARCHIVE: u64 = 1 << 30;
/// The most files of an archive.
const MAX_ENTRIES: usize = 1000;
/// The most bytes of `adapter_config.json` in it; of the weights it is [`registry::blob::MAX_WEIGHTS`].
const MAX_CONFIG: u64 = 1 << 20;
/// The most uploads that wait to be published; of more the oldest are forgotten.
const MAX_WAITING: usize = 8;
/// How long an upload waits.
const PATIENCE: Duration = Duration::from_secs(60 * 60);
/// How many names of passed-over files are told.
const TOLD: usize = 20;

/// Why an upload was not taken.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// There is no folder for uploads.
    #[error(
        "there is nowhere to keep uploads; set LORY_HOME to a folder and start the server again"
    )]
    Off,
    /// It is no archive, or a broken one.
    #[error("the upload is no zip archive that can be read: {0}")]
    Archive(String),
    /// Something in it is refused.
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
    /// It is too large, packed or unpacked.
    #[error("{name} is larger than {limit} bytes, the most that are taken")]
    TooLarge {
        /// The archive, or the file in it.
        name: String,
        /// The limit.
        limit: u64,
    },
    /// There is no such upload.
    #[error("there is no upload {sha256}; it may have been published or forgotten: send it again")]
    Unknown {
        /// What was asked for.
        sha256: String,
    },
    /// The folder of uploads cannot be used.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The files are no adapter.
    #[error(transparent)]
    Adapter(#[from] RegistryError),
}

/// What an upload holds, and whether it would run here.
#[derive(Debug, Clone, PartialEq)]
pub struct Uploaded {
    /// Its content hash, by which it is published.
    pub sha256: String,
    /// Bytes of its weights' file.
    pub bytes: u64,
    /// How its weights are stored.
    pub dtype: Dtype,
    /// The largest rank of its pairs.
    pub rank: usize,
    /// `lora_alpha` of its configuration.
    pub alpha: f64,
    /// The linears that it changes, by name.
    pub modules: Vec<&'static str>,
    /// How many layers it changes.
    pub layers: usize,
    /// Pairs of A and B.
    pub pairs: usize,
    /// Numbers in them.
    pub parameters: usize,
    /// The base that its configuration names.
    pub base_name: Option<String>,
    /// The sha256 of the base that it was trained on, if it records one.
    pub base_sha256: Option<String>,
    /// Why this base cannot run it; none if it can.
    pub problem: Option<String>,
    /// Files of the archive that were passed over, as far as they are told.
    pub passed_over: Vec<String>,
}

/// The folder of uploads.
#[derive(Debug)]
pub(super) struct Uploads {
    root: PathBuf,
}

impl Uploads {
    pub fn new(root: PathBuf) -> Uploads {
        Uploads { root }
    }

    fn io(&self) -> impl Fn(std::io::Error) -> UploadError + '_ {
        |source| UploadError::Io {
            path: self.root.clone(),
            source,
        }
    }

    /// Where one lies.
    fn find(&self, sha256: &str) -> Result<PathBuf, UploadError> {
        let unknown = || UploadError::Unknown {
            sha256: sha256.chars().take(64).collect(),
        };
        let digits = sha256.len() == 64 && sha256.bytes().all(|byte| byte.is_ascii_hexdigit());
        let dir = self.root.join(sha256);
        (digits && dir.is_dir()).then_some(dir).ok_or_else(unknown)
    }

    /// Puts an unpacked adapter where [`Uploads::find`] finds it.
    fn keep(&self, unpacked: TempDir, sha256: &str) -> Result<(), UploadError> {
        let dir = self.root.join(sha256);
        // The same bytes once more: they wait anew.
        if dir.exists() {
            fs::remove_dir_all(&dir).map_err(self.io())?;
        }
        fs::rename(unpacked.keep(), &dir).map_err(self.io())?;
        self.forget();
        Ok(())
    }

    /// Removes what waits for too long, and the oldest of too many.
    fn forget(&self) {
        let mut waiting: Vec<(Duration, PathBuf)> = Vec::new();
        for entry in fs::read_dir(&self.root).into_iter().flatten().flatten() {
            let age = entry.metadata().and_then(|data| data.modified());
            let age = age
                .ok()
                .and_then(|time| time.elapsed().ok())
                .unwrap_or_default();
            waiting.push((age, entry.path()));
        }
        waiting.sort();
        for (at, (age, path)) in waiting.into_iter().enumerate() {
            if at >= MAX_WAITING || age > PATIENCE {
                let _ = match path.is_dir() {
                    true => fs::remove_dir_all(&path),
                    false => fs::remove_file(&path),
                };
            }
        }
    }
}

impl Service {
    fn uploads(&self) -> Result<&Uploads, UploadError> {
        self.uploads.as_ref().ok_or(UploadError::Off)
    }

    /// An empty file for an archive on its way; dropped, it is gone.
    ///
    /// # Errors
    /// [`UploadError::Off`], [`UploadError::Io`].
    pub fn new_upload(&self) -> Result<NamedTempFile, UploadError> {
        let uploads = self.uploads()?;
        fs::create_dir_all(&uploads.root).map_err(uploads.io())?;
        NamedTempFile::new_in(&uploads.root).map_err(uploads.io())
    }

    /// Unpacks an archive, says what it holds, and keeps it for [`Service::uploaded`].
    ///
    /// # Errors
    /// [`UploadError`]; nothing is kept then. An adapter that does not fit this base is none: see [`Uploaded::problem`].
    pub fn receive(&self, archive: &NamedTempFile) -> Result<Uploaded, UploadError> {
        let uploads = self.uploads()?;
        let dir = TempDir::new_in(&uploads.root).map_err(uploads.io())?;
        let passed_over = unpack(archive.path(), dir.path())?;
        let content = AdapterContent::read(dir.path())?;
        let adapter = &content.adapter;
        let here = dir.path().display().to_string();
        let problem = self.adapters.check_fits(adapter, dir.path()).err();
        // Where it lies meanwhile is nobody's business.
        let problem = problem.map(|error| error.to_string().replace(&here, "the adapter"));
        let modules: BTreeSet<&str> = adapter
            .pairs
            .iter()
            .map(|pair| pair.module.name())
            .collect();
        let layers: BTreeSet<usize> = adapter.pairs.iter().map(|pair| pair.layer).collect();
        let weights = dir.path().join(peft::WEIGHTS_FILE).metadata();
        let uploaded = Uploaded {
            sha256: content.sha256.clone(),
            bytes: weights.map_or(0, |file| file.len()),
            dtype: adapter.dtype,
            rank: adapter
                .pairs
                .iter()
                .map(|pair| pair.rank)
                .max()
                .unwrap_or(0),
            alpha: adapter.config.lora_alpha,
            modules: modules.into_iter().collect(),
            layers: layers.len(),
            pairs: adapter.pairs.len(),
            parameters: adapter
                .pairs
                .iter()
                .map(|pair| pair.a.len() + pair.b.len())
                .sum(),
            base_name: adapter.config.base_model_name_or_path.clone(),
            base_sha256: content.base_sha256().map(str::to_owned),
            problem,
            passed_over,
        };
        uploads.keep(dir, &uploaded.sha256)?;
        Ok(uploaded)
    }

    /// The folder of an upload, to be published.
    ///
    /// # Errors
    /// [`UploadError::Off`], [`UploadError::Unknown`].
    pub fn uploaded(&self, sha256: &str) -> Result<PathBuf, PublishError> {
        Ok(self.uploads()?.find(sha256)?)
    }

    /// Forgets an upload.
    ///
    /// # Errors
    /// [`UploadError::Off`], [`UploadError::Unknown`], [`UploadError::Io`].
    pub fn forget_upload(&self, sha256: &str) -> Result<(), PublishError> {
        let uploads = self.uploads()?;
        let dir = uploads.find(sha256)?;
        fs::remove_dir_all(dir).map_err(uploads.io())?;
        Ok(())
    }
}

/// Takes the two files of an adapter out of an archive into `dir`; the names of the other files.
fn unpack(archive: &Path, dir: &Path) -> Result<Vec<String>, UploadError> {
    let broken = |error: &dyn std::fmt::Display| UploadError::Archive(error.to_string());
    let file = File::open(archive).map_err(|error| broken(&error))?;
    let mut archive = ZipArchive::new(file).map_err(|error| broken(&error))?;
    if archive.len() > MAX_ENTRIES {
        let said = format!(
            "it has {} files; at most {MAX_ENTRIES} are looked at",
            archive.len()
        );
        return Err(UploadError::Archive(said));
    }
    let mut passed_over = Vec::new();
    let mut home: Option<PathBuf> = None;
    let mut found = BTreeSet::new();
    for at in 0..archive.len() {
        let mut entry = archive.by_index(at).map_err(|error| broken(&error))?;
        let name = entry.name().map_err(|error| broken(&error))?;
        let name: String = name.chars().take(200).collect();
        let refused = |message: &str| UploadError::Entry {
            name: name.clone(),
            message: message.to_owned(),
        };
        let path = entry.enclosed_name();
        let path =
            path.filter(|_| !name.contains('\\') && !name.starts_with('/') && !name.contains(".."));
        let Some(path) = path else {
            return Err(refused("leads out of the archive"));
        };
        if entry.is_symlink() {
            return Err(refused("is a link; put the file itself into the archive"));
        }
        if entry.is_dir() {
            continue;
        }
        let wanted = [
            (peft::CONFIG_FILE, MAX_CONFIG),
            (peft::WEIGHTS_FILE, registry::blob::MAX_WEIGHTS),
        ];
        let wanted = wanted
            .into_iter()
            .find(|(file, _)| path.file_name().is_some_and(|name| name == *file));
        let Some((file, limit)) = wanted else {
            passed_over.push(name);
            continue;
        };
        let parent = path.parent().unwrap_or(Path::new("")).to_owned();
        if !found.insert(file) || home.as_ref().is_some_and(|home| *home != parent) {
            return Err(refused(
                "is there besides another adapter; send one adapter at a time",
            ));
        }
        home = Some(parent);
        let target = dir.join(file);
        let io = |source| UploadError::Io {
            path: target.clone(),
            source,
        };
        let mut out = File::create(&target).map_err(io)?;
        // Whatever the archive says of the size.
        let copied = std::io::copy(&mut entry.by_ref().take(limit + 1), &mut out);
        let copied = copied.map_err(|error| broken(&error))?;
        if copied > limit {
            return Err(UploadError::TooLarge {
                name: file.to_owned(),
                limit,
            });
        }
    }
    for file in [peft::CONFIG_FILE, peft::WEIGHTS_FILE] {
        if !found.contains(file) {
            return Err(UploadError::Missing { file });
        }
    }
    passed_over.truncate(TOLD);
    Ok(passed_over)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use zip::write::SimpleFileOptions;
    use zip::{CompressionMethod, ZipWriter};

    use super::*;

    /// Unpacks an archive of these files; what was taken out, and what was passed over.
    fn unpacked(files: &[(&str, &[u8])]) -> Result<(usize, Vec<String>), UploadError> {
        let folder = tempfile::tempdir().unwrap();
        let archive = folder.path().join("a.zip");
        let mut writer = ZipWriter::new(File::create(&archive).unwrap());
        let options = SimpleFileOptions::default().compression_method(CompressionMethod::Deflated);
        for (name, bytes) in files {
            writer.start_file(*name, options).unwrap();
            writer.write_all(bytes).unwrap();
        }
        writer.finish().unwrap();
        let dir = folder.path().join("out");
        fs::create_dir(&dir).unwrap();
        let passed_over = unpack(&archive, &dir)?;
        // Nothing lies anywhere else.
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
        Ok((fs::read_dir(dir).unwrap().count(), passed_over))
    }

    const CONFIG: (&str, &[u8]) = ("adapter_config.json", b"{}");
    const WEIGHTS: (&str, &[u8]) = ("adapter_model.safetensors", b"w");

    #[test]
    fn the_two_files_are_taken_out_wherever_they_lie_together() {
        assert_eq!(unpacked(&[CONFIG, WEIGHTS]).unwrap(), (2, Vec::new()));
        let nested = [
            ("x/y/adapter_config.json", CONFIG.1),
            ("x/y/adapter_model.safetensors", WEIGHTS.1),
            ("x/y/README.md", b"r"),
            ("__MACOSX/x/y/._adapter_config.json", b"r"),
        ];
        let (files, passed_over) = unpacked(&nested).unwrap();
        assert_eq!((files, passed_over.len()), (2, 2));
    }

    #[test]
    fn paths_bombs_and_others_are_refused() {
        let refused = |files: &[(&str, &[u8])]| unpacked(files).unwrap_err().to_string();
        for path in [
            "../adapter_config.json",
            "/etc/adapter_config.json",
            "a/../../adapter_config.json",
            "..\\adapter_config.json",
        ] {
            let said = refused(&[(path, b"{}"), WEIGHTS]);
            assert!(said.contains("leads out of the archive"), "{path}: {said}");
        }
        let zeros = vec![0; MAX_CONFIG as usize + 1];
        let said = refused(&[(CONFIG.0, &zeros), WEIGHTS]);
        assert!(said.contains("larger than 1048576 bytes"), "{said}");
        assert!(refused(&[CONFIG]).contains("has no adapter_model.safetensors"));
        assert!(refused(&[WEIGHTS]).contains("has no adapter_config.json"));
        let two = refused(&[CONFIG, WEIGHTS, ("b/adapter_config.json", b"{}")]);
        assert!(two.contains("one adapter at a time"), "{two}");
        let apart = refused(&[CONFIG, ("b/adapter_model.safetensors", b"w")]);
        assert!(apart.contains("one adapter at a time"), "{apart}");
        let names: Vec<String> = (0..=MAX_ENTRIES).map(|n| format!("f{n}")).collect();
        let many: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &b""[..])).collect();
        assert!(refused(&many).contains("at most 1000"));
        let none = NamedTempFile::new().unwrap();
        let said = unpack(none.path(), Path::new("nowhere"))
            .unwrap_err()
            .to_string();
        assert!(said.contains("no zip archive"), "{said}");
    }

    #[test]
    fn of_many_uploads_the_latest_wait() {
        let root = tempfile::tempdir().unwrap();
        let uploads = Uploads::new(root.path().to_owned());
        for n in 0..MAX_WAITING + 3 {
            let dir = TempDir::new_in(root.path()).unwrap();
            uploads.keep(dir, &format!("{n:064x}")).unwrap();
        }
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), MAX_WAITING);
        for wrong in ["", "..", "../..", &"0".repeat(63), &"f".repeat(64)] {
            assert!(uploads.find(wrong).is_err(), "{wrong}");
        }
    }
}
