//! Fetches any model repository of a hub by its id, `owner/name`. The revision is pinned to a commit when it is fetched.
//!
//! ```text
//! models/owner--name/
//!   current             the commit that --base owner/name or --adapter owner/name means
//!   <commit>/           its files, in the repository's folders; `<file>.part` while one is incomplete
//! ```
//!
//! A repository is a folder with weights, a GGUF file (which may be in a folder and split into parts), or an adapter.
//!
//! A file gets its name when it is complete, and `current` is written when all files are. An interrupted download resumes where it
//! stopped, because a commit's content does not change.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use formats::folder::Description;
use formats::gguf::{MAX_PARTS, PartName};
use formats::peft::OtherFormat;
use formats::{atomic_file, disk, peft};
use serde::Deserialize;

use super::cache_folder::FolderLock;
use super::client::{HubClient, HubSettings, RepositoryFile};
use super::error::PullError;
use crate::home::Home;
use crate::progress::Progress;

const CURRENT: &str = "current";
/// The configuration of a base in a folder.
const CONFIG: &str = "config.json";
/// The longest path of a file in a repository, in bytes.
const MAX_PATH: usize = 1024;

/// The files of a base's folder besides its weights.
const DESCRIPTION: [&str; 6] = [
    CONFIG,
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "model.safetensors.index.json",
];

/// How the addresses of the hub's pages begin.
const PAGES: &str = "https://huggingface.co/";

/// A repository's id: `owner/name`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepositoryId(String);

impl RepositoryId {
    /// The id in a text, if it is one: two names of letters, digits, `-`, `_` and `.`. The address of its page on huggingface.co means the
    /// same.
    #[must_use]
    pub fn parse(text: &str) -> Option<RepositoryId> {
        let page = text.strip_prefix(PAGES);
        let text = page.map_or(text, |page| page.strip_suffix('/').unwrap_or(page));
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

    /// The part behind the owner.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
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
    /// One GGUF file of it, instead of the folder. It may be one part of a split file, which means all parts.
    pub file: Option<String>,
}

/// What a repository has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RepositoryKind {
    /// A base: a folder or a GGUF file.
    Base,
    /// A PEFT adapter.
    Adapter,
}

/// A repository in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PulledRepository {
    /// The folder, or the GGUF file: what `--base` or `--adapter` takes.
    pub path: PathBuf,
    /// What it is.
    pub kind: RepositoryKind,
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
    #[serde(default = "base")]
    kind: RepositoryKind,
}

/// The kind of what was fetched before adapters were.
fn base() -> RepositoryKind {
    RepositoryKind::Base
}

/// The path of a fetched repository of this kind; `None` if it was not fetched.
#[must_use]
pub fn pulled_repository(id: &RepositoryId, kind: RepositoryKind, home: &Home) -> Option<PathBuf> {
    let folder = id.folder(home);
    let text = disk::read(&folder.join(CURRENT), 4 << 10).ok()?;
    let current: Current = serde_json::from_slice(&text).ok()?;
    let is_safe = is_commit(&current.commit) && current.file.as_deref().is_none_or(is_inside);
    if !is_safe || current.kind != kind {
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
    disk::create_private_folders(&folder).map_err(io(&folder))?;
    let _lock = FolderLock::wait(&folder, progress).map_err(io(&folder))?;
    let hub = HubClient::new(wanted.id.as_str(), hub);
    progress.spin(&format!("Asking {} for {}", hub.endpoint, wanted.id));
    let listing = hub.listing(&wanted.revision)?;
    if !is_commit(&listing.sha) {
        return Err(hub.failed(format!("the hub names the commit {:?}", listing.sha)));
    }
    let chosen = choose(&listing.siblings, wanted.file.as_deref());
    let Chosen { files, file, kind } = chosen.map_err(|why| hub.failed(why))?;
    let at = folder.join(&listing.sha);
    disk::create_private_folders(&at).map_err(io(&at))?;
    let total: u64 = files.iter().filter_map(|file| file.size).sum();
    progress.bytes(&format!("Fetching {}", wanted.id), total);
    let mut bytes = 0;
    for file in &files {
        bytes += hub.fetch(&listing.sha, file, &at, progress)?;
        if kind == RepositoryKind::Base && file.rfilename == CONFIG {
            // It comes first, so nothing large was fetched in vain.
            let checked = Description::read(&at).map(drop);
            checked.map_err(|error| hub.failed(error.to_string()))?;
        }
    }
    progress.clear();
    let current = Current {
        commit: listing.sha.clone(),
        file,
        kind,
    };
    let text = serde_json::to_vec(&current).unwrap_or_default();
    atomic_file::replace_private(&folder.join(CURRENT), |file| file.write_all(&text))
        .map_err(io(&folder))?;
    Ok(PulledRepository {
        path: current.file.map_or(at.clone(), |file| at.join(file)),
        kind,
        commit: listing.sha,
        bytes,
    })
}

/// The files to fetch.
#[derive(Debug, Clone)]
struct Chosen {
    files: Vec<RepositoryFile>,
    /// The GGUF file, or its first part, if it is one.
    file: Option<String>,
    kind: RepositoryKind,
}

/// The files of a base or of an adapter among those of a repository.
fn choose(all: &[RepositoryFile], file: Option<&str>) -> Result<Chosen, String> {
    let named = |name: &str| all.iter().find(|one| one.rfilename == name).cloned();
    let of_names = |names: &[&str]| -> Vec<RepositoryFile> {
        names.iter().filter_map(|name| named(name)).collect()
    };
    if let Some(file) = file {
        return gguf(all, &find_gguf(all, file)?);
    }
    let weights = all.iter().filter(|one| {
        let name = one.rfilename.as_str();
        let is_other = name.starts_with("consolidated") || name == peft::WEIGHTS_FILE;
        is_plain(name) && name.ends_with(".safetensors") && !is_other
    });
    let weights: Vec<RepositoryFile> = weights.cloned().collect();
    if !weights.is_empty() && named(CONFIG).is_some() {
        let mut files = of_names(&DESCRIPTION);
        files.extend(weights);
        return Ok(Chosen {
            files,
            file: None,
            kind: RepositoryKind::Base,
        });
    }
    if named(peft::CONFIG_FILE).is_some() {
        if named(peft::WEIGHTS_FILE).is_none() {
            let what = format!("it is an adapter without {}", peft::WEIGHTS_FILE);
            return Err(match OtherFormat::of(|file| named(file).is_some()) {
                Some(found) => format!("{what}: {found}"),
                None => what,
            });
        }
        return Ok(Chosen {
            files: of_names(&[peft::CONFIG_FILE, peft::WEIGHTS_FILE]),
            file: None,
            kind: RepositoryKind::Adapter,
        });
    }
    let ggufs = ggufs(all);
    match ggufs.as_slice() {
        [one] => gguf(all, one),
        [] => Err(
            "it has neither safetensors with a config.json, nor a GGUF file, nor an adapter"
                .to_owned(),
        ),
        several => Err(format!(
            "it has several GGUF files; choose one with --file: {}",
            several.join(", ")
        )),
    }
}

/// The GGUF files of a repository, in all its folders; of a split one, the first part that is there.
fn ggufs(all: &[RepositoryFile]) -> Vec<String> {
    let mut names: Vec<&str> = Vec::new();
    for one in all.iter().filter(|one| is_inside(&one.rfilename)) {
        let name = one.rfilename.as_str();
        let file = PartName::parse(name).map(|part| (part.stem, part.count));
        let is_listed = names.iter().any(|other| {
            let other = PartName::parse(other).map(|part| (part.stem, part.count));
            file.is_some() && other == file
        });
        if name.ends_with(".gguf") && !is_listed {
            names.push(name);
        }
    }
    names.into_iter().map(str::to_owned).collect()
}

/// The GGUF file of a repository that `--file` means: by its path, or by its name in any folder.
fn find_gguf(all: &[RepositoryFile], file: &str) -> Result<String, String> {
    if !is_inside(file) {
        return Err(format!("--file {file:?} is not a file name"));
    }
    let paths = || all.iter().map(|one| one.rfilename.as_str());
    if let Some(path) = paths().find(|path| *path == file) {
        return Ok(path.to_owned());
    }
    let named = |path: &&str| is_inside(path) && path.rsplit('/').next() == Some(file);
    let found: Vec<&str> = paths().filter(named).collect();
    match found.as_slice() {
        [path] => Ok((*path).to_owned()),
        [] => {
            let there = ggufs(all);
            let there = match there.is_empty() {
                true => "no GGUF files".to_owned(),
                false => there.join(", "),
            };
            Err(format!("it has no file {file:?}; it has {there}"))
        }
        several => Err(format!(
            "it has several files {file:?}; choose one with --file: {}",
            several.join(", ")
        )),
    }
}

/// The file at `path`, and the other parts if it is a part of a split file.
fn gguf(all: &[RepositoryFile], path: &str) -> Result<Chosen, String> {
    let names: Vec<String> = match PartName::parse(path) {
        Some(part) if part.count > MAX_PARTS => {
            return Err(format!(
                "{path} is one of {} parts; at most {MAX_PARTS} are read",
                part.count
            ));
        }
        Some(part) => part.all().collect(),
        None => vec![path.to_owned()],
    };
    let mut files = Vec::with_capacity(names.len());
    for (number, name) in names.iter().enumerate() {
        let Some(file) = all.iter().find(|one| one.rfilename == *name) else {
            let (part, count) = (number + 1, names.len());
            return Err(format!(
                "part {part} of {count} is missing: it has no file {name:?}"
            ));
        };
        files.push(file.clone());
    }
    Ok(Chosen {
        files,
        file: names.into_iter().next(),
        kind: RepositoryKind::Base,
    })
}

/// Whether it is the name of a file, and not a path to another folder.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && !name.contains(['/', '\\', ':', '\0']) && !name.starts_with('.')
}

/// Whether it is the path of a file that cannot lead out of the folder that it is joined to.
fn is_inside(path: &str) -> bool {
    path.len() <= MAX_PATH && path.split('/').all(is_plain)
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
            for end in ["", "/"] {
                let page = format!("https://huggingface.co/{good}{end}");
                assert_eq!(RepositoryId::parse(&page).unwrap().as_str(), good);
            }
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
        let names = |chosen: Chosen| -> Vec<String> {
            let files = chosen.files.into_iter();
            files.map(|file| file.rfilename).collect()
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
        let split = listed(&[
            "README.md",
            "Q4/a-00001-of-00002.gguf",
            "Q4/a-00002-of-00002.gguf",
        ]);
        for file in [
            None,
            Some("a-00002-of-00002.gguf"),
            Some("Q4/a-00001-of-00002.gguf"),
        ] {
            let chosen = choose(&split, file).unwrap();
            assert_eq!(chosen.file.as_deref(), Some("Q4/a-00001-of-00002.gguf"));
            assert_eq!(
                names(chosen),
                ["Q4/a-00001-of-00002.gguf", "Q4/a-00002-of-00002.gguf"]
            );
        }
        let several = listed(&[
            "Q4/a-00001-of-00002.gguf",
            "Q4/a-00002-of-00002.gguf",
            "Q4/b.gguf",
            "Q8/b.gguf",
            "../c.gguf",
            "/d.gguf",
            "Q4\\e.gguf",
        ]);
        let error = |file| choose(&several, file).unwrap_err();
        assert!(error(None).ends_with("--file: Q4/a-00001-of-00002.gguf, Q4/b.gguf, Q8/b.gguf"));
        assert!(error(Some("b.gguf")).contains("several files"));
        for outside in ["../c.gguf", "/d.gguf", "Q4/../b.gguf", "Q4\\e.gguf", ""] {
            assert!(
                error(Some(outside)).contains("not a file name"),
                "{outside}"
            );
        }
        let many = listed(&["a-00001-of-99999.gguf"]);
        assert!(choose(&many, None).unwrap_err().contains("at most 1024"));
        let adapter = ["adapter_config.json", "adapter_model.safetensors"];
        let chosen = choose(
            &listed(&[&adapter[..], &["config.json", "x.gguf"]].concat()),
            None,
        );
        let chosen = chosen.unwrap();
        assert_eq!(chosen.kind, RepositoryKind::Adapter);
        assert_eq!(names(chosen), adapter);
        assert!(
            choose(&listed(&["adapter_config.json"]), None)
                .unwrap_err()
                .contains("adapter without adapter_model.safetensors")
        );
        for (weights, what) in [
            ("adapter_model.bin", "a pickle, which is not read"),
            ("adapters.safetensors", "an MLX adapter, which are not read"),
        ] {
            let refused = choose(&listed(&["adapter_config.json", weights]), None);
            let message = refused.unwrap_err();
            assert!(
                message.contains(weights) && message.contains(what),
                "{message}"
            );
        }
        assert!(
            choose(&listed(&["x.bin"]), None)
                .unwrap_err()
                .contains("neither")
        );
    }
}
