//! The HTTP client of a hub: lists a repository's files and downloads them. An interrupted download resumes where it stopped.
//!
//! `HF_ENDPOINT` selects another hub than Hugging Face's, `HF_TOKEN` the account.

use std::io::{Read, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use formats::disk::{self, DiskFile};
use serde::Deserialize;
use ureq::config::RedirectAuthHeaders;
use ureq::http::{Response, StatusCode};
use ureq::{Agent, Body};

use super::cache_folder::hash_file;
use super::error::PullError;
use crate::progress::Progress;

/// Time limits: to connect, until an answer begins, and between two pieces of it.
const CONNECT: Duration = Duration::from_secs(20);
const RESPONSE: Duration = Duration::from_secs(30);
const READ: Duration = Duration::from_secs(60);
/// The most attempts to download a file in one run.
const ATTEMPTS: u32 = 4;
/// The longest listing of a repository, in bytes.
const MAX_LISTING: u64 = 16 << 20;
/// The extension of an incomplete file.
const PART: &str = ".part";

/// The hub's description of a repository.
#[derive(Debug, Deserialize)]
pub(super) struct RepositoryInfo {
    /// The commit.
    pub(super) sha: String,
    /// Its files.
    pub(super) siblings: Vec<RepositoryFile>,
}

/// A file of a repository.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct RepositoryFile {
    /// Its path.
    pub(super) rfilename: String,
    /// Its length.
    pub(super) size: Option<u64>,
    /// The hash of a large file.
    pub(super) lfs: Option<Lfs>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Lfs {
    /// In hex.
    sha256: String,
}

/// The hub and the account.
#[derive(Clone, Default)]
pub struct HubSettings {
    /// Its address; the default is Hugging Face's.
    pub endpoint: Option<String>,
    /// The token to send, if any.
    pub token: Option<String>,
}

impl std::fmt::Debug for HubSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A token must not be logged.
        let token = self.token.as_ref().map(|_| "…");
        f.debug_struct("HubSettings")
            .field("endpoint", &self.endpoint)
            .field("token", &token)
            .finish()
    }
}

impl HubSettings {
    /// The settings of `HF_ENDPOINT` and `HF_TOKEN`.
    #[must_use]
    pub fn from_env() -> Self {
        let set = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        Self {
            endpoint: set("HF_ENDPOINT"),
            token: set("HF_TOKEN"),
        }
    }
}

/// A client for one repository of a hub.
pub(super) struct HubClient<'a> {
    agent: Agent,
    pub(super) endpoint: String,
    token: Option<&'a str>,
    /// `owner/name`.
    repository: &'a str,
}

impl<'a> HubClient<'a> {
    pub(super) fn new(repository: &'a str, settings: &'a HubSettings) -> HubClient<'a> {
        let agent = Agent::config_builder()
            .timeout_connect(Some(CONNECT))
            .timeout_recv_response(Some(RESPONSE))
            .timeout_per_read(Some(READ))
            // Other hosts store the files; only the hub gets the token.
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .http_status_as_error(false)
            .user_agent(concat!("lory/", env!("CARGO_PKG_VERSION")))
            .build()
            .into();
        let endpoint = settings.endpoint.as_deref();
        HubClient {
            agent,
            endpoint: endpoint
                .unwrap_or("https://huggingface.co")
                .trim_end_matches('/')
                .to_owned(),
            token: settings.token.as_deref(),
            repository,
        }
    }

    pub(super) fn failed(&self, why: String) -> PullError {
        PullError::Repository {
            at: format!("{}/{}", self.endpoint, self.repository),
            why,
        }
    }

    fn get(&self, url: &str, from: u64) -> Result<Response<Body>, PullError> {
        let mut request = self.agent.get(url);
        if let Some(token) = self.token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        if from > 0 {
            request = request.header("Range", format!("bytes={from}-"));
        }
        request
            .call()
            .map_err(|error| self.failed(error.to_string()))
    }

    pub(super) fn listing(&self, revision: &str) -> Result<RepositoryInfo, PullError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
        if revision.is_empty() || !revision.chars().all(plain) || revision.contains("..") {
            return Err(self.failed(format!("{revision:?} is not a revision")));
        }
        let revision = revision.replace('/', "%2F");
        let url = format!(
            "{}/api/models/{}/revision/{revision}?blobs=true",
            self.endpoint, self.repository
        );
        let mut response = self.get(&url, 0)?;
        if !response.status().is_success() {
            return Err(self.failed(self.refusal(&response, "it")));
        }
        let text = response.body_mut().with_config().limit(MAX_LISTING);
        let text = text
            .read_to_string()
            .map_err(|error| self.failed(error.to_string()))?;
        serde_json::from_str(&text)
            .map_err(|error| self.failed(format!("its listing cannot be read: {error}")))
    }

    /// Why the hub refuses a request, and what to do about it.
    fn refusal(&self, response: &Response<Body>, what: &str) -> String {
        let code = response
            .headers()
            .get("x-error-code")
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        let page = format!("{}/{}", self.endpoint, self.repository);
        let status = response.status();
        match (code, status) {
            ("GatedRepo", _) if self.token.is_none() => format!(
                "{what} is gated: accept its terms at {page}, create a token at {}/settings/tokens, and set HF_TOKEN to it",
                self.endpoint
            ),
            ("GatedRepo", _) => format!(
                "{what} is gated, and the account of HF_TOKEN may not read it: accept its terms at {page} with that account (some \
                 owners need days to approve it), and check that the token may read gated repositories"
            ),
            ("RevisionNotFound", _) => {
                format!(
                    "it does not have this revision ({status}); leave --revision out for the newest"
                )
            }
            ("EntryNotFound", _) => format!("{what} does not exist ({status})"),
            (_, StatusCode::UNAUTHORIZED) if self.token.is_none() => format!(
                "the repository does not exist or is private ({status}): check the id, or set HF_TOKEN"
            ),
            (_, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
                format!("the account of HF_TOKEN may not read it ({status})")
            }
            (_, StatusCode::NOT_FOUND) => {
                format!("the repository does not exist ({status}): check the id")
            }
            (_, StatusCode::TOO_MANY_REQUESTS) => {
                format!("the hub limits requests ({status}): try again in a few minutes")
            }
            _ => format!("{what}: the hub answers {status}"),
        }
    }

    /// Fetches one file to its path under `folder`, and returns the bytes received.
    pub(super) fn fetch(
        &self,
        commit: &str,
        file: &RepositoryFile,
        folder: &Path,
        progress: &Progress,
    ) -> Result<u64, PullError> {
        let name = &file.rfilename;
        let path = folder.join(name);
        if path.is_file() {
            progress.add(file.size.unwrap_or(0));
            return Ok(0);
        }
        let folder = path.parent().unwrap_or(folder);
        disk::create_private_folders(folder).map_err(|source| PullError::Folder {
            path: folder.to_owned(),
            source,
        })?;
        let mut part = path.clone().into_os_string();
        part.push(PART);
        let part = PathBuf::from(part);
        let fetched = self.download(commit, name, file.size, &part, progress);
        let bytes = fetched.map_err(|error| {
            let more = if error.resumable {
                "; the same command continues from there"
            } else {
                ""
            };
            self.failed(format!("{name}: {}{more}", error.why))
        })?;
        let io = |source| PullError::Folder {
            path: part.clone(),
            source,
        };
        if let Some(lfs) = &file.lfs {
            let found = hash_file(&part).map_err(io)?;
            if found != lfs.sha256 {
                // Resuming would not repair it.
                let _ = disk::remove_file(&part);
                return Err(self.failed(format!(
                    "{name}: the sha256 of the download is {found}, the hub lists {}; the download is removed: try again",
                    lfs.sha256
                )));
            }
        }
        disk::open_append(&part)
            .and_then(|file| file.sync_all())
            .map_err(io)?;
        disk::rename(&part, &path).map_err(io)?;
        disk::sync_folder(folder).map_err(io)?;
        Ok(bytes)
    }

    /// Downloads a file to `part` and returns the bytes received. Tries again if the connection breaks.
    pub(super) fn download(
        &self,
        revision: &str,
        name: &str,
        size: Option<u64>,
        part: &Path,
        progress: &Progress,
    ) -> Result<u64, DownloadError> {
        let mut bytes = 0;
        let mut attempt = 1;
        loop {
            match self.resume(revision, name, size, part, progress, &mut bytes) {
                Ok(()) => return Ok(bytes),
                Err(error) if error.resumable && attempt < ATTEMPTS => {
                    progress.say(&format!("{name}: {}; trying again", error.why));
                    std::thread::sleep(Duration::from_millis(250 << attempt));
                    attempt += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Downloads the rest of `part` in one attempt, and adds the bytes received to `bytes`.
    fn resume(
        &self,
        revision: &str,
        name: &str,
        size: Option<u64>,
        part: &Path,
        progress: &Progress,
        bytes: &mut u64,
    ) -> Result<(), DownloadError> {
        let failed = |error| DownloadError::disk(part, &error);
        let mut out = disk::open_append(part).map_err(failed)?;
        let mut length = out.metadata().map_err(failed)?.len();
        if size.is_some_and(|size| length > size) {
            out.truncate(0).map_err(failed)?;
            length = 0;
        }
        if size == Some(length) && length > 0 {
            return Ok(());
        }
        let mut response = self.request_rest(revision, name, length)?;
        if length > 0 && response.status() != StatusCode::PARTIAL_CONTENT {
            // The hub sends the whole file again.
            out.truncate(0).map_err(failed)?;
            length = 0;
        }
        progress.add(length);
        let mut received = |count: u64| {
            *bytes += count;
            progress.add(count);
        };
        let mut body = response.body_mut().as_reader();
        append(&mut body, &mut out, part, length, size, &mut received)
    }

    /// Requests a file from the byte `from` on.
    fn request_rest(
        &self,
        revision: &str,
        name: &str,
        from: u64,
    ) -> Result<Response<Body>, DownloadError> {
        let url = format!(
            "{}/{}/resolve/{revision}/{}",
            self.endpoint,
            self.repository,
            percent_encoded(name)
        );
        let response = self.get(&url, from).map_err(|error| match error {
            PullError::Repository { why, .. } => DownloadError::resumable(why),
            other => DownloadError::resumable(other.to_string()),
        })?;
        let status = response.status();
        if status.is_server_error() {
            let why = format!("the hub answers {status}");
            return Err(DownloadError::resumable(why));
        }
        if !status.is_success() {
            return Err(DownloadError::last(self.refusal(&response, "the file")));
        }
        Ok(response)
    }
}

/// A path in a URL: its slashes stay.
fn percent_encoded(path: &str) -> String {
    let one = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => {
            char::from(byte).to_string()
        }
        other => format!("%{other:02X}"),
    };
    path.bytes().map(one).collect()
}

/// Appends `body` to the file `out` at `part`, which has `length` bytes. `received` gets the length of each piece.
fn append(
    body: &mut dyn Read,
    out: &mut DiskFile,
    part: &Path,
    mut length: u64,
    size: Option<u64>,
    received: &mut dyn FnMut(u64),
) -> Result<(), DownloadError> {
    let mut buffer = vec![0; 1 << 18];
    loop {
        let count = body.read(&mut buffer).map_err(|error| {
            let why = format!("the connection broke after {length} bytes ({error})");
            DownloadError::resumable(why)
        })?;
        if count == 0 {
            break;
        }
        out.write_all(&buffer[..count])
            .map_err(|error| DownloadError::disk(part, &error))?;
        length += count as u64;
        received(count as u64);
        if let Some(size) = size.filter(|size| length > *size) {
            let _ = disk::remove_file(part);
            let why = format!("longer than the {size} bytes that the hub lists");
            return Err(DownloadError::last(why));
        }
    }
    match size {
        Some(size) if length < size => Err(DownloadError::resumable(format!(
            "the connection broke after {length} of {size} bytes"
        ))),
        _ => Ok(()),
    }
}

/// Why a file was not downloaded.
pub(super) struct DownloadError {
    pub(super) why: String,
    /// Whether another attempt can continue where this one stopped.
    resumable: bool,
}

impl DownloadError {
    fn resumable(why: String) -> DownloadError {
        let resumable = true;
        DownloadError { why, resumable }
    }

    /// An error that another attempt would not change.
    fn last(why: String) -> DownloadError {
        let resumable = false;
        DownloadError { why, resumable }
    }

    fn disk(part: &Path, error: &std::io::Error) -> DownloadError {
        DownloadError::last(format!("{}: {error}", part.display()))
    }
}
