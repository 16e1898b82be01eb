//! Fetches any model repository of a hub by its id, `owner/name`. The revision is pinned to a commit when it is fetched.
//!
//! ```text
//! models/owner--name/
//!   current             the commit that --base owner/name means
//!   <commit>/           its files; `<file>.part` while one is incomplete
//! ```
//!
//! A file gets its name when it is complete, and `current` is written when all files are. An interrupted download resumes where it
//! stopped, because a commit's content does not change.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use formats::{atomic_file, disk};
use serde::Deserialize;

use super::cache_folder::FolderLock;
use super::client::{HubClient, HubSettings, RepositoryFile};
use super::error::PullError;
use crate::home::Home;
use crate::progress::Progress;

const CURRENT: &str = "current";

/// The files of a base's folder besides its weights.
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

    /// The id as text.
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

/// A request for a repository, or for one file of it.
#[derive(Debug, Clone)]
pub struct RepositoryRequest {
    /// The repository.
    pub id: RepositoryId,
    /// A branch, a tag or a commit.
    pub revision: String,
    /// One GGUF file of it, instead of the folder.
    pub file: Option<String>,
}

/// A repository in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PulledRepository {
    /// The folder, or the GGUF file: what `--base` takes.
    pub path: PathBuf,
    /// The commit.
    pub commit: String,
    /// Bytes received in this call.
    pub bytes: u64,
}

/// The content of the file `current`.
#[derive(Debug, serde::Serialize, Deserialize)]
struct Current {
    commit: String,
    file: Option<String>,
}

/// The path of a fetched repository; `None` if it was not fetched.
#[must_use]
pub fn pulled_repository(id: &RepositoryId, home: &Home) -> Option<PathBuf> {
    let folder = id.folder(home);
    let text = disk::read(&folder.join(CURRENT), 4 << 10).ok()?;
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

/// Fetches a repository's files into the cache.
///
/// # Errors
/// [`PullError`]: the folder cannot be written, or the hub refuses the files; the message has what to do.
pub fn pull_repository(
    wanted: &RepositoryRequest,
    home: &Home,
    hub: &HubSettings,
    progress: &mut Progress,
) -> Result<PulledRepository, PullError> {
    let folder = wanted.id.folder(home);
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| PullError::Folder { path, source }
    };
    disk::create_folders(&folder).map_err(io(&folder))?;
    let _lock = FolderLock::wait(&folder, progress).map_err(io(&folder))?;
    let hub = HubClient::new(wanted.id.as_str(), hub);
    progress.spin(&format!("Asking {} for {}", hub.endpoint, wanted.id));
    let listing = hub.listing(&wanted.revision)?;
    if !is_commit(&listing.sha) {
        return Err(hub.failed(format!("the hub names the commit {:?}", listing.sha)));
    }
    let files = choose(&listing.siblings, wanted.file.as_deref()).map_err(|why| hub.failed(why))?;
    let at = folder.join(&listing.sha);
    disk::create_folders(&at).map_err(io(&at))?;
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
    atomic_file::replace_private(&folder.join(CURRENT), |file| file.write_all(&text))
        .map_err(io(&folder))?;
    Ok(PulledRepository {
        path: current.file.map_or(at.clone(), |file| at.join(file)),
        commit: listing.sha,
        bytes,
    })
}

/// The only file, if it is a GGUF file.
fn single_gguf(files: &[RepositoryFile]) -> Option<String> {
    match files {
        [file] if file.rfilename.ends_with(".gguf") => Some(file.rfilename.clone()),
        _ => None,
    }
}

/// The files of a base among those of a repository.
fn choose(all: &[RepositoryFile], file: Option<&str>) -> Result<Vec<RepositoryFile>, String> {
    let named = |name: &str| all.iter().find(|one| one.rfilename == name).cloned();
    if let Some(file) = file {
        if !is_plain(file) {
            return Err(format!("--file {file:?} is not a file name"));
        }
        let found = named(file).ok_or_else(|| format!("it has no file {file:?}"))?;
        return Ok(vec![found]);
    }
    let weights: Vec<RepositoryFile> = all
        .iter()
        .filter(|one| {
            let name = one.rfilename.as_str();
            is_plain(name) && name.ends_with(".safetensors") && !name.starts_with("consolidated")
        })
        .cloned()
        .collect();
    if !weights.is_empty() && named("config.json").is_some() {
        let mut files: Vec<RepositoryFile> =
            DESCRIPTION.iter().filter_map(|name| named(name)).collect();
        files.extend(weights);
        return Ok(files);
    }
    let ggufs: Vec<RepositoryFile> = all
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

/// Whether it is the name of a file, and not a path to another folder.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && !name.contains(['/', '\\', '\0']) && !name.starts_with('.')
}

fn is_commit(text: &str) -> bool {
    (7..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit())
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
    fn files_of_a_base_are_chosen_from_the_listing() {
        let listed = |names: &[&str]| -> Vec<RepositoryFile> {
            let one = |name: &&str| RepositoryFile {
                rfilename: (*name).to_owned(),
                size: None,
                lfs: None,
            };
            names.iter().map(one).collect()
        };
        let names = |files: Vec<RepositoryFile>| -> Vec<String> {
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
                .contains("not a file name")
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
