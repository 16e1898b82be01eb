//! Receives adapters that clients upload.

use std::collections::BTreeSet;
use std::path::PathBuf;

use auth::Owner;
use formats::peft;
use registry::AdapterContent;

use super::Service;
use crate::archive::unpack;
use crate::error::PublishError;
use crate::uploads::{ReceivedArchive, UploadError, UploadStore, Uploaded, folder_bytes};

impl Service {
    fn uploads(&self) -> Result<&UploadStore, UploadError> {
        self.uploads.as_ref().ok_or(UploadError::Off)
    }

    /// An empty file for an archive of `owner` that is being received; it is removed on drop.
    ///
    /// # Errors
    /// [`UploadError::Off`], [`UploadError::Io`].
    pub fn new_upload(&self, owner: Owner) -> Result<ReceivedArchive, UploadError> {
        self.uploads()?.new_archive(owner)
    }

    /// Unpacks an archive, describes its adapter, and keeps it for [`Service::uploaded`].
    ///
    /// # Errors
    /// [`UploadError`]; nothing is kept then. An adapter that does not fit this base is not an error: see [`Uploaded::problem`].
    pub fn receive(
        &self,
        mut archive: ReceivedArchive,
        owner: &Owner,
    ) -> Result<Uploaded, UploadError> {
        let uploads = self.uploads()?;
        let dir = uploads.new_folder()?;
        let skipped = unpack(archive.path(), dir.path())?;
        let content = AdapterContent::read(dir.path())?;
        let adapter = &content.adapter;
        let here = dir.path().display().to_string();
        let problem = self.adapters.check_fits(adapter, dir.path()).err();
        // The client must not learn the path of the temporary folder.
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
            passed_over: skipped,
        };
        let bytes = folder_bytes(dir.path());
        archive.grow_to(bytes)?;
        // From here on the adapter counts instead of the archive.
        drop(archive);
        uploads.store(dir, &uploaded.sha256, owner, bytes)?;
        Ok(uploaded)
    }

    /// The folder of an upload, for publishing.
    ///
    /// # Errors
    /// [`UploadError::Off`], [`UploadError::Unknown`].
    pub fn uploaded(&self, sha256: &str) -> Result<PathBuf, PublishError> {
        Ok(self.uploads()?.find(sha256)?)
    }

    /// Removes an upload.
    ///
    /// # Errors
    /// [`UploadError::Off`], [`UploadError::Unknown`], [`UploadError::Io`].
    pub fn forget_upload(&self, sha256: &str) -> Result<(), PublishError> {
        Ok(self.uploads()?.remove(sha256)?)
    }
}
