//! Any model repository of a hub, by its id: `owner/name`, at a revision that is pinned when it is fetched.
//!
//! ```text
//! models/owner--name/
//!   current             the commit that --base owner/name means
//!   <commit>/           its files; `<file>.part` while one is under way
//! ```
//!
//! A file appears under its name when it is whole, `current` when all files are. What is interrupted goes on where it was: the
//! commit names the content, so a part of it stays a part.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use ureq::config::RedirectAuthHeaders;
use ureq::http::{Response, StatusCode};
use ureq::{Agent, Body};

use super::place::{Turn, hex};
use super::{HubSettings, PullError};
use crate::home::Home;
use crate::progress::Progress;

/// Time limits: to connect, until an answer begins, and between two pieces of it.
const CONNECT: Duration = Duration::from_secs(20);
const RESPONSE: Duration = Duration::from_secs(30);
const READ: Duration = Duration::from_secs(60);
/// How often a file that breaks off is taken up again within one run.
const ATTEMPTS: u32 = 4;
/// Longest answer of the hub about a repository, in bytes.
const MAX_LISTING: u64 = 16 << 20;
const CURRENT: &str = "current";
const PART: &str = ".part";

/// The files of a folder that is a base, beside its weights.
const DESCRIPTION: [&str; 6] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "model.safetensors.index.json",
];

/// A repository's id: `owner/name`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepositoryId(String);

impl RepositoryId {
    /// The id in a text, if it is one: two names of letters, digits, `-`, `_` and `.`.
    #[must_use]
    pub fn parse(text: &str) -> Option<RepositoryId> {
        let (owner, name) = text.split_once('/')?;
        let good = |part: &str| {
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            !part.is_empty()
                && part.len() <= 96
                && part.chars().all(plain)
                && !part.starts_with(['.', '-'])
                && !part.contains("..")
                && !part.contains("--")
        };
        (good(owner) && good(name)).then(|| RepositoryId(text.to_owned()))
    }

    /// As it is written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn folder(&self, home: &Home) -> PathBuf {
        home.base(&self.0.replace('/', "--"))
    }
}

impl std::fmt::Display for RepositoryId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// What of a repository is wanted.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Which one.
    pub id: RepositoryId,
    /// A branch, a tag or a commit.
    pub revision: String,
    /// One GGUF file of it, instead of the folder.
    pub file: Option<String>,
}

/// A repository in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// The folder, or the GGUF file: what `--base` takes.
    pub path: PathBuf,
    /// The commit.
    pub commit: String,
    /// Bytes that came over the network this time.
    pub bytes: u64,
}

/// What `current` says.
#[derive(Debug, serde::Serialize, Deserialize)]
struct Current {
    commit: String,
    file: Option<String>,
}

/// Where a repository that was fetched lies; none if it was not.
#[must_use]
pub fn fetched(id: &RepositoryId, home: &Home) -> Option<PathBuf> {
    let folder = id.folder(home);
    let text = fs::read(folder.join(CURRENT)).ok()?;
    let current: Current = serde_json::from_slice(&text).ok()?;
    if !is_commit(&current.commit) || !current.file.as_deref().is_none_or(is_plain) {
        return None;
    }
    let folder = folder.join(current.commit);
    let path = current
        .file
        .map_or(folder.clone(), |file| folder.join(file));
    path.exists().then_some(path)
}

/// What the hub says about a repository.
#[derive(Debug, Deserialize)]
struct Listing {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Debug, Clone, Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    lfs: Option<Lfs>,
}

#[derive(Debug, Clone, Deserialize)]
struct Lfs {
    sha256: String,
}

/// Gets a repository's files into the cache.
///
/// # Errors
/// [`PullError`]: the folder cannot be written, or the hub does not give the files, with what to do about it.
pub fn pull_repository(
    wanted: &Wanted,
    home: &Home,
    hub: &HubSettings,
    progress: &mut Progress,
) -> Result<Fetched, PullError> {
    let folder = wanted.id.folder(home);
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| PullError::Folder { path, source }
    };
    fs::create_dir_all(&folder).map_err(io(&folder))?;
    let _turn = Turn::wait(&folder, progress).map_err(io(&folder))?;
    let hub = Hub::new(wanted, hub);
    progress.spin(&format!("Asking {} for {}", hub.endpoint, wanted.id));
    let listing = hub.listing(&wanted.revision)?;
    if !is_commit(&listing.sha) {
        return Err(hub.failed(format!("the hub names the commit {:?}", listing.sha)));
    }
    let files = choose(&listing.siblings, wanted.file.as_deref()).map_err(|why| hub.failed(why))?;
    let at = folder.join(&listing.sha);
    fs::create_dir_all(&at).map_err(io(&at))?;
    let total: u64 = files.iter().filter_map(|file| file.size).sum();
    progress.bytes(&format!("Fetching {}", wanted.id), total);
    let mut bytes = 0;
    for file in &files {
        bytes += hub.fetch(&listing.sha, file, &at, progress)?;
    }
    progress.clear();
    let current = Current {
        commit: listing.sha.clone(),
        file: wanted.file.clone().or_else(|| single_gguf(&files)),
    };
    let text = serde_json::to_vec(&current).unwrap_or_default();
    let mut kept = tempfile::NamedTempFile::new_in(&folder).map_err(io(&folder))?;
    kept.write_all(&text).map_err(io(&folder))?;
    kept.as_file().sync_all().map_err(io(&folder))?;
    kept.persist(folder.join(CURRENT))
        .map_err(|error| io(&folder)(error.error))?;
    Ok(Fetched {
        path: current.file.map_or(at.clone(), |file| at.join(file)),
        commit: listing.sha,
        bytes,
    })
}

/// The file that a repository is, where it is one.
fn single_gguf(files: &[Sibling]) -> Option<String> {
    match files {
        [file] if file.rfilename.ends_with(".gguf") => Some(file.rfilename.clone()),
        _ => None,
    }
}

/// The files of a base among those of a repository.
fn choose(all: &[Sibling], file: Option<&str>) -> Result<Vec<Sibling>, String> {
    let named = |name: &str| all.iter().find(|one| one.rfilename == name).cloned();
    if let Some(file) = file {
        if !is_plain(file) {
            return Err(format!("--file {file:?} is no file name"));
        }
        let found = named(file).ok_or_else(|| format!("it has no file {file:?}"))?;
        return Ok(vec![found]);
    }
    let weights: Vec<Sibling> = all
        .iter()
        .filter(|one| {
            let name = one.rfilename.as_str();
            is_plain(name) && name.ends_with(".safetensors") && !name.starts_with("consolidated")
        })
        .cloned()
        .collect();
    if !weights.is_empty() && named("config.json").is_some() {
        let mut files: Vec<Sibling> = DESCRIPTION.iter().filter_map(|name| named(name)).collect();
        files.extend(weights);
        return Ok(files);
    }
    let ggufs: Vec<Sibling> = all
        .iter()
        .filter(|one| one.rfilename.ends_with(".gguf") && is_plain(&one.rfilename))
        .cloned()
        .collect();
    match ggufs.as_slice() {
        [_] => Ok(ggufs),
        [] => Err("it has neither safetensors with a config.json nor a GGUF file".to_owned()),
        several => {
            let names: Vec<&str> = several.iter().map(|f| f.rfilename.as_str()).collect();
            Err(format!(
                "it has several GGUF files; choose one with --file: {}",
                names.join(", ")
            ))
        }
    }
}

/// A name within a folder, and nothing that leads out of it.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && !name.contains(['/', '\\', '\0']) && !name.starts_with('.')
}

fn is_commit(text: &str) -> bool {
    (7..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// A hub that is asked for one repository.
struct Hub<'a> {
    agent: Agent,
    endpoint: String,
    token: Option<&'a str>,
    id: &'a RepositoryId,
}

impl<'a> Hub<'a> {
    fn new(wanted: &'a Wanted, settings: &'a HubSettings) -> Hub<'a> {
        let agent = Agent::config_builder()
            .timeout_connect(Some(CONNECT))
            .timeout_recv_response(Some(RESPONSE))
            .timeout_per_read(Some(READ))
            // Files lie with others; a token is for the hub alone.
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .http_status_as_error(false)
            .user_agent(concat!("lory/", env!("CARGO_PKG_VERSION")))
            .build()
            .into();
        let endpoint = settings.endpoint.as_deref();
        Hub {
            agent,
            endpoint: endpoint
                .unwrap_or("https://huggingface.co")
                .trim_end_matches('/')
                .to_owned(),
            token: settings.token.as_deref(),
            id: &wanted.id,
        }
    }

    fn failed(&self, why: String) -> PullError {
        PullError::Repository {
            at: format!("{}/{}", self.endpoint, self.id),
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

    fn listing(&self, revision: &str) -> Result<Listing, PullError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
        if revision.is_empty() || !revision.chars().all(plain) || revision.contains("..") {
            return Err(self.failed(format!("{revision:?} is no revision")));
        }
        let revision = revision.replace('/', "%2F");
        let url = format!(
            "{}/api/models/{}/revision/{revision}?blobs=true",
            self.endpoint, self.id
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
            .map_err(|error| self.failed(format!("its listing is not understood: {error}")))
    }

    /// Why the hub does not give something, and what to do about it.
    fn refusal(&self, response: &Response<Body>, what: &str) -> String {
        let code = response
            .headers()
            .get("x-error-code")
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        let page = format!("{}/{}", self.endpoint, self.id);
        let status = response.status();
        match (code, status) {
            ("GatedRepo", _) if self.token.is_none() => format!(
                "{what} is gated: accept its terms at {page}, make a token at {}/settings/tokens, and set HF_TOKEN to it",
                self.endpoint
            ),
            ("GatedRepo", _) => format!(
                "{what} is gated, and the account of HF_TOKEN may not read it: accept its terms at {page} with that account (some \
                 owners take days to agree), and see that the token may read gated repositories"
            ),
            ("RevisionNotFound", _) => {
                format!("it has no such revision ({status}); leave --revision out for the newest")
            }
            ("EntryNotFound", _) => format!("{what} is not there ({status})"),
            (_, StatusCode::UNAUTHORIZED) if self.token.is_none() => format!(
                "there is no such repository, or it is private ({status}): check the id, or set HF_TOKEN"
            ),
            (_, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
                format!("the account of HF_TOKEN may not read it ({status})")
            }
            (_, StatusCode::NOT_FOUND) => {
                format!("there is no such repository ({status}): check the id")
            }
            (_, StatusCode::TOO_MANY_REQUESTS) => {
                format!("the hub wants fewer requests ({status}): try again in some minutes")
            }
            _ => format!("{what}: the hub answers {status}"),
        }
    }

    /// Gets one file; how many bytes came.
    fn fetch(
        &self,
        commit: &str,
        file: &Sibling,
        folder: &Path,
        progress: &Progress,
    ) -> Result<u64, PullError> {
        let name = &file.rfilename;
        let path = folder.join(name);
        if path.is_file() {
            progress.add(file.size.unwrap_or(0));
            return Ok(0);
        }
        let part = folder.join(format!("{name}{PART}"));
        let mut bytes = 0;
        let mut attempt = 1;
        loop {
            match self.go_on(commit, name, file.size, &part, progress, &mut bytes) {
                Ok(()) => break,
                // Broken off: the next attempt goes on there.
                Err((true, error)) if attempt < ATTEMPTS => {
                    progress.say(&format!("{name}: {error}; going on"));
                    std::thread::sleep(Duration::from_millis(250 << attempt));
                    attempt += 1;
                }
                Err((again, error)) => {
                    let more = if again {
                        "; the same command goes on from there"
                    } else {
                        ""
                    };
                    return Err(self.failed(format!("{name}: {error}{more}")));
                }
            }
        }
        let io = |source| PullError::Folder {
            path: part.clone(),
            source,
        };
        if let Some(lfs) = &file.lfs {
            let found = hash(&part).map_err(io)?;
            if found != lfs.sha256 {
                // What is wrong stays wrong however often it is gone on with.
                let _ = fs::remove_file(&part);
                return Err(self.failed(format!(
                    "{name}: the sha256 of what came is {found}, the hub says {}; it is removed: try again",
                    lfs.sha256
                )));
            }
        }
        File::open(&part)
            .and_then(|file| file.sync_all())
            .map_err(io)?;
        fs::rename(&part, &path).map_err(io)?;
        Ok(bytes)
    }

    /// Takes a file up where it broke off. Errors say whether it may be tried again.
    fn go_on(
        &self,
        commit: &str,
        name: &str,
        size: Option<u64>,
        part: &Path,
        progress: &Progress,
        bytes: &mut u64,
    ) -> Result<(), (bool, String)> {
        let disk = |error: std::io::Error| (false, format!("{}: {error}", part.display()));
        let mut out = File::options()
            .create(true)
            .append(true)
            .open(part)
            .map_err(disk)?;
        let mut has = out.metadata().map_err(disk)?.len();
        if size.is_some_and(|size| has > size) {
            out.set_len(0).map_err(disk)?;
            has = 0;
        }
        if size == Some(has) && has > 0 {
            return Ok(());
        }
        let url = format!("{}/{}/resolve/{commit}/{name}", self.endpoint, self.id);
        let mut response = self.get(&url, has).map_err(|error| match error {
            PullError::Repository { why, .. } => (true, why),
            other => (true, other.to_string()),
        })?;
        let status = response.status();
        if status.is_server_error() {
            return Err((true, format!("the hub answers {status}")));
        }
        if !status.is_success() {
            return Err((false, self.refusal(&response, "the file")));
        }
        if has > 0 && status != StatusCode::PARTIAL_CONTENT {
            // It sends everything again.
            out.set_len(0).map_err(disk)?;
            has = 0;
        }
        progress.add(has);
        let mut reader = response.body_mut().as_reader();
        let mut buffer = vec![0; 1 << 18];
        loop {
            let count = reader
                .read(&mut buffer)
                .map_err(|error| (true, format!("broke off after {has} bytes ({error})")))?;
            if count == 0 {
                break;
            }
            out.write_all(&buffer[..count]).map_err(disk)?;
            has += count as u64;
            *bytes += count as u64;
            progress.add(count as u64);
            if size.is_some_and(|size| has > size) {
                let _ = fs::remove_file(part);
                return Err((
                    false,
                    format!(
                        "longer than the {} bytes that the hub says",
                        size.unwrap_or(0)
                    ),
                ));
            }
        }
        match size {
            Some(size) if has < size => {
                Err((true, format!("broke off after {has} of {size} bytes")))
            }
            _ => Ok(()),
        }
    }
}

fn hash(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(&hasher.finalize())),
            count => hasher.update(&buffer[..count]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_two_plain_names() {
        for good in [
            "meta-llama/Llama-3.1-8B-Instruct",
            "a/b",
            "Qwen/Qwen2.5-0.5B",
        ] {
            assert_eq!(RepositoryId::parse(good).unwrap().as_str(), good);
        }
        for bad in [
            "a", "a/b/c", "/b", "a/", "../b", "a/..", "a b/c", "a/.b", "a--b/c", "a\\b/c", "./x",
        ] {
            assert_eq!(RepositoryId::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_base_is_chosen_from_what_is_there() {
        let listed = |names: &[&str]| -> Vec<Sibling> {
            let one = |name: &&str| Sibling {
                rfilename: (*name).to_owned(),
                size: None,
                lfs: None,
            };
            names.iter().map(one).collect()
        };
        let names = |files: Vec<Sibling>| -> Vec<String> {
            files.into_iter().map(|file| file.rfilename).collect()
        };
        let folder = listed(&[
            "README.md",
            "config.json",
            "tokenizer.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "consolidated.safetensors",
            "original/consolidated.00.pth",
            "sub/x.safetensors",
            "onnx/model.onnx",
        ]);
        assert_eq!(
            names(choose(&folder, None).unwrap()),
            [
                "config.json",
                "tokenizer.json",
                "model.safetensors.index.json",
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors"
            ]
        );
        let ggufs = listed(&["a.Q4.gguf", "a.Q8.gguf"]);
        assert!(
            choose(&ggufs, None)
                .unwrap_err()
                .contains("--file: a.Q4.gguf, a.Q8.gguf")
        );
        assert_eq!(
            names(choose(&ggufs, Some("a.Q8.gguf")).unwrap()),
            ["a.Q8.gguf"]
        );
        assert!(
            choose(&ggufs, Some("../x"))
                .unwrap_err()
                .contains("no file name")
        );
        assert!(
            choose(&ggufs, Some("b.gguf"))
                .unwrap_err()
                .contains("no file \"b.gguf\"")
        );
        assert!(
            choose(&listed(&["x.bin"]), None)
                .unwrap_err()
                .contains("neither")
        );
    }
}
