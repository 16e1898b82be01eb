//! A base from the Hugging Face hub. `HF_ENDPOINT` names another hub, `HF_TOKEN` who asks.

use std::fs::File;
use std::path::Path;

use hf_hub::Cache;
use hf_hub::api::sync::ApiBuilder;

use super::KnownBase;
use super::place::Turn;
use crate::progress::Progress;

/// Which hub is asked, and who asks.
#[derive(Clone, Default)]
pub struct HubSettings {
    /// Its address; without, Hugging Face's own.
    pub endpoint: Option<String>,
    /// The token that is sent, if any.
    pub token: Option<String>,
}

impl std::fmt::Debug for HubSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A token has no place in a log.
        let token = self.token.as_ref().map(|_| "…");
        f.debug_struct("HubSettings")
            .field("endpoint", &self.endpoint)
            .field("token", &token)
            .finish()
    }
}

impl HubSettings {
    /// What `HF_ENDPOINT` and `HF_TOKEN` say.
    #[must_use]
    pub fn from_env() -> Self {
        let set = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        Self {
            endpoint: set("HF_ENDPOINT"),
            token: set("HF_TOKEN"),
        }
    }
}

pub(super) fn fetch(
    base: &KnownBase,
    settings: &HubSettings,
    turn: &Turn,
    path: &Path,
    progress: &mut Progress,
) -> Result<(), String> {
    let (repository, file) = base.hub;
    let folder = turn.folder().map_err(|error| error.to_string())?;
    let endpoint = settings
        .endpoint
        .as_deref()
        .unwrap_or("https://huggingface.co")
        .trim_end_matches('/');
    progress.bytes(&format!("Fetching {} from {endpoint}", base.id), base.bytes);
    let asked = format!("{endpoint}/{repository}, {file}");
    let api = ApiBuilder::from_cache(Cache::new(folder.path().to_owned()))
        .with_endpoint(endpoint.to_owned())
        .with_token(settings.token.clone())
        .with_progress(false)
        .build()
        .map_err(|error| format!("{asked}: {error}"))?;
    let fetched = api
        .model(repository.to_owned())
        .download_with_progress(file, Watched(progress))
        .map_err(|error| format!("{asked}: {error}"))?;
    progress.bytes("Checking", base.bytes);
    let mut reader =
        File::open(&fetched).map_err(|error| format!("{}: {error}", fetched.display()))?;
    turn.store(base, &mut reader, path, progress)
        .map_err(|why| format!("{asked}: {why}"))
}

/// The hub's progress, shown as ours.
struct Watched<'a>(&'a Progress);

impl hf_hub::api::Progress for Watched<'_> {
    fn init(&mut self, _size: usize, _filename: &str) {
        self.0.set(0);
    }

    fn update(&mut self, size: usize) {
        self.0.add(size as u64);
    }

    fn finish(&mut self) {}
}
