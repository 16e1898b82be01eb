//! What there is to be named: the repository's files, the words of its sources, and the flags of the command line.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use syn::visit::Visit;

use crate::root;

/// Words that are not ours: other programs, formats and protocols, or examples.
const NOT_OURS: &[&str] = &[
    "--name=false",
    "/proc/driver/nvidia",
    "/sys/class/drm",
    "OUT/.train/",
    "OWNER/NAME",
    "_count",
    "_sum",
    "dynamic",
    "strum",
    "valgrind",
    "vdpbf16ps",
];
/// Flags of other programs.
const OTHER_FLAGS: &[&str] = &[
    "cfg",
    "data-binary",
    "example",
    "lib",
    "logdir",
    "lora",
    "path",
    "release",
    "target",
    "test",
    "workspace",
];
/// Endings that the metrics' encoder adds to names.
const METRIC_ENDINGS: [&str; 4] = ["_total", "_seconds_total", "_seconds", "_bytes"];

/// Endings of files that are in the repository if a document names them; others may also be files that the program writes.
const SOURCES: [&str; 6] = [".rs", ".py", ".mjs", ".js", ".md", ".css"];
const DATA: [&str; 10] = [
    ".toml",
    ".json",
    ".jsonl",
    ".html",
    ".svg",
    ".safetensors",
    ".gguf",
    ".csv",
    ".png",
    ".txt",
];

/// What there is to be named.
pub(super) struct Repository {
    /// Paths of files and folders, from the root on.
    paths: Vec<String>,
    /// Words of the sources, without comments.
    words: BTreeSet<String>,
    /// The same by file.
    words_by_file: BTreeMap<String, BTreeSet<String>>,
    /// The sources, for names that are not one word.
    text: String,
    flags: BTreeSet<String>,
}

impl Repository {
    pub fn read() -> Repository {
        let root = root();
        let mut found = Repository {
            paths: Vec::new(),
            words: BTreeSet::new(),
            words_by_file: BTreeMap::new(),
            text: String::new(),
            flags: BTreeSet::from(["help".to_owned(), "version".to_owned()]),
        };
        for top in [
            ".ci",
            ".github",
            "bench",
            "crates",
            "docs",
            "fuzz",
            "packaging",
            "personas",
            "deploy",
        ] {
            if root.join(top).is_dir() {
                found.folder(&root, &root.join(top));
            }
        }
        for entry in std::fs::read_dir(&root).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                found.file(&root, &path);
            }
        }
        found
    }

    fn folder(&mut self, root: &Path, folder: &Path) {
        self.paths
            .push(folder.strip_prefix(root).unwrap().display().to_string());
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                self.folder(root, &path);
            } else {
                self.file(root, &path);
            }
        }
    }

    fn file(&mut self, root: &Path, path: &Path) {
        let name = path.strip_prefix(root).unwrap().display().to_string();
        self.paths.push(name.clone());
        let is_code = [
            ".rs",
            ".py",
            ".js",
            ".mjs",
            ".html",
            ".css",
            ".toml",
            "Dockerfile",
            "/run",
        ];
        let own = name.starts_with("crates/lory/tests/house") || name.starts_with("bench/runs");
        if own || !is_code.iter().any(|ending| name.ends_with(ending)) {
            return;
        }
        let text = std::fs::read_to_string(path).unwrap();
        let is_comment = |line: &&str| line.trim_start().starts_with("//") && name.ends_with(".rs");
        let mut words = BTreeSet::new();
        for line in text.lines().filter(|line| !is_comment(line)) {
            let parts = line.split(|c: char| !c.is_alphanumeric() && c != '_');
            words.extend(parts.map(str::to_owned));
            self.text.push_str(line);
            self.text.push('\n');
        }
        self.words.extend(words.iter().cloned());
        self.words_by_file.insert(name.clone(), words);
        if name.ends_with(".py") {
            let flags = text
                .split("\"--")
                .skip(1)
                .filter_map(|rest| rest.split('"').next());
            self.flags.extend(flags.map(str::to_owned));
        }
        if name.ends_with(".rs") && name.contains("/cli/") {
            let syntax = syn::parse_file(&text).unwrap();
            Flags(&mut self.flags).visit_file(&syntax);
        }
    }

    /// Whether a file or folder of this path exists, from the root or any folder on.
    fn has_path(&self, path: &str) -> bool {
        let end = format!("/{path}");
        self.paths
            .iter()
            .any(|known| known == path || known.ends_with(&end))
    }

    /// What is wrong with a word that is set as code, if anything.
    pub fn check(&self, word: &str) -> Option<&'static str> {
        let word = word.trim_end_matches([',', '.', ':', ';']);
        if word.is_empty() || NOT_OURS.contains(&word) {
            return None;
        }
        if let Some(flag) = word.strip_prefix("--") {
            let flag = flag.split(['=', '[', ']', '`']).next().unwrap();
            let known = self.flags.contains(flag) || OTHER_FLAGS.contains(&flag);
            return (!known && !flag.is_empty()).then_some("no such flag");
        }
        if word.starts_with('/') {
            let start = word.split(['{', '<', '$', '?', '*']).next().unwrap();
            let known = start.len() < 2 || self.text.contains(start.trim_end_matches(['/', '.']));
            return (!known).then_some("no such route");
        }
        if word.contains("://")
            || word.contains(['*', '<', '{', '$', '(', '=', '"', '@', '\\', '~'])
        {
            return None;
        }
        let (path, item) = match word.split_once("::") {
            Some((path, item)) if path.ends_with(".rs") => (path, Some(item)),
            _ => (word, None),
        };
        let path = path.trim_start_matches("./");
        let named_file = |endings: &[&str]| {
            endings
                .iter()
                .any(|ending| path.ends_with(ending) && path != *ending)
        };
        let path = path.strip_suffix('/').unwrap_or(path);
        if named_file(&SOURCES) || word.ends_with('/') {
            let known = self.has_path(path) || self.text.contains(path);
            if !known || named_file(&SOURCES) && !self.has_path(path) {
                return Some("no such file or folder");
            }
            return item.and_then(|item| self.identifier(item));
        }
        if named_file(&DATA) {
            let name = path.rsplit('/').next().unwrap();
            return (!self.has_path(path) && !self.text.contains(name)).then_some("no such file");
        }
        if path.contains('/') {
            let known = self.has_path(path) || self.text.contains(path);
            return (!known).then_some("no such file or folder");
        }
        self.identifier(word)
    }

    /// `Type::function` is in one file, and `crate::module::item` in the file of that module.
    fn identifier(&self, word: &str) -> Option<&'static str> {
        let parts = parts(word)?;
        if parts.len() > 1 && self.is_crate(parts[0]) {
            return self.crate_path(&parts);
        }
        let known = match parts.as_slice() {
            [part] => has_word(&self.words, part),
            parts => self
                .words_by_file
                .values()
                .any(|words| parts.iter().all(|part| has_word(words, part))),
        };
        (!known).then_some("not in the sources")
    }

    /// The rest of a path that begins with a crate: modules as far as there are any, then items in the last module's files.
    fn crate_path(&self, parts: &[&str]) -> Option<&'static str> {
        let modules = (2..=parts.len())
            .rev()
            .find(|count| !self.module(&parts[..*count]).is_empty())
            .unwrap_or(1);
        let items = &parts[modules..];
        let mut files = self.module(&parts[..modules]);
        if modules == 1 {
            // An item at the root is defined there, or exported from there.
            files.retain(|file| file.ends_with("/lib.rs") || items.len() > 1);
        }
        let has_all = |file: &&str| {
            items
                .iter()
                .all(|item| has_word(&self.words_by_file[*file], item))
        };
        let known = items.is_empty() || files.iter().any(has_all);
        (!known).then_some("not in this module")
    }

    fn is_crate(&self, name: &str) -> bool {
        self.paths.contains(&format!("crates/{name}/Cargo.toml"))
    }

    /// The sources of a module: its file, and those of the modules in it.
    fn module(&self, parts: &[&str]) -> Vec<&str> {
        let start = format!("crates/{}/src", parts[0]);
        let path = parts[1..]
            .iter()
            .fold(start, |path, part| format!("{path}/{part}"));
        self.files(|name| {
            let rest = name.strip_prefix(&path);
            rest.is_some_and(|rest| rest == ".rs" || rest.starts_with('/') && rest.ends_with(".rs"))
        })
    }

    fn files(&self, choose: impl Fn(&str) -> bool) -> Vec<&str> {
        let names = self.words_by_file.keys().map(String::as_str);
        names.filter(|name| choose(name)).collect()
    }

    /// The sources at a place that a document names: a file, a folder, a crate or a module. None if it is something else.
    fn place(&self, place: &str) -> Vec<&str> {
        let parts: Vec<&str> = place.split("::").collect();
        if self.is_crate(parts[0]) {
            return match parts.as_slice() {
                [name] => self.files(|file| file.starts_with(&format!("crates/{name}/"))),
                parts => self.module(parts),
            };
        }
        let path = place.trim_start_matches("./").trim_end_matches('/');
        if !place.contains('/') && !SOURCES.iter().any(|ending| path.ends_with(ending)) {
            return Vec::new();
        }
        let inside = format!("/{path}");
        self.files(|file| {
            let file = format!("/{file}");
            file.ends_with(&inside) || file.contains(&format!("{inside}/"))
        })
    }

    /// Whether a document names sources by this.
    pub fn is_place(&self, code: &str) -> bool {
        !self.place(code).is_empty()
    }

    /// What is wrong with "`identifier` in `place`", if anything.
    pub fn check_pair(&self, identifier: &str, place: &str) -> Option<&'static str> {
        let parts = parts(identifier)?;
        // A crate's name in front does not have to be in the file.
        let items = if self.is_crate(parts[0]) {
            &parts[1..]
        } else {
            &parts[..]
        };
        let known = self.place(place).iter().any(|file| {
            items
                .iter()
                .all(|item| has_word(&self.words_by_file[*file], item))
        });
        (!known).then_some("not in this file")
    }
}

/// The parts of an identifier such as `Type::function()`, if it is one.
pub(super) fn parts(word: &str) -> Option<Vec<&str>> {
    let is_part = |part: &&str| {
        part.chars().all(|c| c.is_alphanumeric() || c == '_')
            && part.starts_with(|c: char| c.is_alphabetic() || c == '_')
    };
    let word = word.trim_end_matches("()").trim_end_matches('!');
    let parts: Vec<&str> = word.split("::").collect();
    parts.iter().all(is_part).then_some(parts)
}

/// Whether a word is among `words`, as it is or as the name that serde or the metrics' encoder makes it of.
fn has_word(words: &BTreeSet<String>, word: &str) -> bool {
    let capital = |part: &str| {
        let mut letters = part.chars();
        letters
            .next()
            .into_iter()
            .flat_map(char::to_uppercase)
            .chain(letters)
            .collect::<String>()
    };
    let variant: String = word.split('_').map(capital).collect();
    let stems = METRIC_ENDINGS
        .iter()
        .filter_map(|ending| word.strip_suffix(ending));
    let is_metric = word.starts_with("lory_");
    words.contains(word)
        || word.contains('_') && words.contains(&variant)
        || is_metric && stems.into_iter().any(|stem| words.contains(stem))
        // The rest of a metric's name that the words before it begin.
        || word.starts_with('_') && words.iter().any(|known| known.ends_with(word))
}

/// The long flags of structs that clap reads.
struct Flags<'a>(&'a mut BTreeSet<String>);

impl<'ast> Visit<'ast> for Flags<'_> {
    fn visit_field(&mut self, field: &'ast syn::Field) {
        let Some(name) = &field.ident else { return };
        for attribute in field
            .attrs
            .iter()
            .filter(|attribute| attribute.path().is_ident("arg"))
        {
            let syn::Meta::List(list) = &attribute.meta else {
                continue;
            };
            let tokens = list.tokens.to_string();
            let long = tokens
                .split(',')
                .map(str::trim)
                .find(|part| part.starts_with("long"));
            if let Some(long) = long {
                let named = long.split('"').nth(1).map(str::to_owned);
                self.0
                    .insert(named.unwrap_or_else(|| name.to_string().replace('_', "-")));
            }
        }
    }
}
