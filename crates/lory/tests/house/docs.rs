//! What the documents name exists: files, folders, identifiers, flags, routes, and the targets of links.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use syn::visit::Visit;

use crate::{crates, files, root};

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
    "vdpbf16ps",
];
/// Flags of other programs.
const OTHER_FLAGS: &[&str] = &[
    "data-binary",
    "example",
    "logdir",
    "lora",
    "path",
    "release",
    "target",
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

/// A document's words that are set as code, with their lines.
struct Document {
    name: String,
    spans: Vec<(usize, String)>,
    /// Lines of fenced blocks.
    blocks: Vec<(usize, String)>,
    links: Vec<(usize, String)>,
    anchors: BTreeSet<String>,
}

impl Document {
    fn read(path: &Path) -> Document {
        let text = std::fs::read_to_string(path).unwrap();
        let mut document = Document {
            name: path.strip_prefix(root()).unwrap().display().to_string(),
            spans: Vec::new(),
            blocks: Vec::new(),
            links: Vec::new(),
            anchors: BTreeSet::new(),
        };
        let mut fenced = false;
        for (i, line) in text.lines().enumerate() {
            if line.trim_start().starts_with("```") {
                fenced = !fenced;
            } else if fenced {
                document.blocks.push((i + 1, line.to_owned()));
            } else {
                document.line(i + 1, line);
            }
        }
        document
    }

    fn line(&mut self, number: usize, line: &str) {
        let pieces = line.split('`').skip(1).step_by(2);
        self.spans
            .extend(pieces.map(|span| (number, span.to_owned())));
        let targets = line
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next());
        self.links
            .extend(targets.map(|target| (number, target.to_owned())));
        if line.starts_with('#') {
            let title = line.trim_start_matches('#').trim().to_lowercase();
            let kept = title
                .chars()
                .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
            self.anchors
                .insert(kept.collect::<String>().replace(' ', "-"));
        }
    }
}

fn documents() -> Vec<Document> {
    let top = ["ARCHITECTURE.md", "CONTRIBUTING.md", "README.md"];
    let mut paths: Vec<PathBuf> = top.iter().map(|name| root().join(name)).collect();
    paths.extend(files(&root().join("docs"), &[".md"]));
    paths.iter().map(|path| Document::read(path)).collect()
}

/// What there is to be named.
struct Repository {
    /// Paths of files and folders, from the root on.
    paths: Vec<String>,
    /// Words of the sources, without comments.
    words: BTreeSet<String>,
    /// The sources, for names that are not one word.
    text: String,
    flags: BTreeSet<String>,
}

impl Repository {
    fn read() -> Repository {
        let root = root();
        let mut found = Repository {
            paths: Vec::new(),
            words: BTreeSet::new(),
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
        for line in text.lines().filter(|line| !is_comment(line)) {
            let words = line.split(|c: char| !c.is_alphanumeric() && c != '_');
            self.words.extend(words.map(str::to_owned));
            self.text.push_str(line);
            self.text.push('\n');
        }
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
    fn check(&self, word: &str) -> Option<&'static str> {
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

    /// Every part of `Type::function` is a word of the sources.
    fn identifier(&self, word: &str) -> Option<&'static str> {
        let is_part = |part: &str| {
            part.chars().all(|c| c.is_alphanumeric() || c == '_')
                && part.starts_with(|c: char| c.is_alphabetic() || c == '_')
        };
        let word = word.trim_end_matches("()").trim_end_matches('!');
        let parts: Vec<&str> = word.split("::").collect();
        let unknown =
            parts.iter().all(|part| is_part(part)) && !parts.iter().all(|part| self.has_word(part));
        unknown.then_some("not in the sources")
    }

    /// Whether a word is in the sources, as it is or as the name that serde or the metrics' encoder makes it of.
    fn has_word(&self, word: &str) -> bool {
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
        self.words.contains(word)
            || word.contains('_') && self.words.contains(&variant)
            || is_metric && stems.into_iter().any(|stem| self.words.contains(stem))
            // The rest of a metric's name that the words before it begin.
            || word.starts_with('_') && self.words.iter().any(|known| known.ends_with(word))
    }
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

#[test]
fn what_documents_name_exists() {
    let repository = Repository::read();
    let mut wrong = Vec::new();
    for document in documents() {
        for (line, span) in &document.spans {
            // A command or an expression is checked by its flags and files.
            let one = !span.contains(' ');
            let words = span
                .split(' ')
                .filter(|word| one || word.starts_with("--") || word.contains('/'));
            for word in words {
                if let Some(why) = repository.check(word) {
                    wrong.push(format!("{}:{line}: {word}: {why}", document.name));
                }
            }
        }
        for (line, text) in &document.blocks {
            for word in text
                .split([' ', '\'', '"'])
                .filter(|word| word.starts_with("--") && word.len() > 2)
            {
                if let Some(why) = repository.check(word) {
                    wrong.push(format!("{}:{line}: {word}: {why}", document.name));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn links_between_documents_lead_somewhere() {
    let documents = documents();
    let anchors: BTreeMap<&str, &BTreeSet<String>> = documents
        .iter()
        .map(|document| (document.name.as_str(), &document.anchors))
        .collect();
    let mut wrong = Vec::new();
    for document in &documents {
        let folder = Path::new(&document.name).parent().unwrap();
        for (line, target) in &document.links {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            let mut parts: Vec<&str> = Vec::new();
            let whole = if path.is_empty() {
                document.name.clone()
            } else {
                folder.join(path).display().to_string()
            };
            for part in whole.split('/') {
                match part {
                    ".." => drop(parts.pop()),
                    "." | "" => {}
                    part => parts.push(part),
                }
            }
            let path = parts.join("/");
            let known = root().join(&path).exists();
            let anchored = anchor.is_empty()
                || anchors
                    .get(path.as_str())
                    .is_none_or(|known| known.contains(anchor));
            if !known || !anchored {
                wrong.push(format!("{}:{line}: {target}", document.name));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn front_pages_name_every_module() {
    let mut missing = Vec::new();
    for (name, folder) in crates() {
        let text = std::fs::read_to_string(folder.join("src/lib.rs")).unwrap();
        let page = text.lines().filter(|line| line.starts_with("//!"));
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let named: BTreeSet<&str> = page.flat_map(|line| line.split(|c| !is_word(c))).collect();
        let modules = text.lines().filter_map(|line| {
            let line = line.strip_prefix("pub ").unwrap_or(line);
            line.strip_prefix("mod ")?.strip_suffix(';')
        });
        for module in modules {
            // A module may be named by its type: `app_state` by `AppState`.
            let type_name: String = module
                .split('_')
                .map(|part| part[..1].to_uppercase() + &part[1..])
                .collect();
            if !named.contains(module) && !named.contains(type_name.as_str()) {
                missing.push(format!("{name}: {module}"));
            }
        }
    }
    assert!(
        missing.is_empty(),
        "the `//!` pages of these crates do not name these modules: {missing:#?}"
    );
}
