//! What the documents name exists: files, folders, identifiers in the files that they are said to be in, flags, routes, and the
//! targets of links.

mod document;
mod pairs;
mod repository;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use document::documents;
use pairs::pairs;
use repository::Repository;

use crate::{crates, root};

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
fn identifiers_are_in_the_files_that_documents_name_with_them() {
    let repository = Repository::read();
    let mut wrong = Vec::new();
    for document in documents() {
        for (line, text) in &document.paragraphs {
            let is_name =
                |code: &str| repository::parts(code).is_some() && !repository.is_place(code);
            for (name, place) in pairs(text, |code| repository.is_place(code), is_name) {
                if let Some(why) = repository.check_pair(&name, &place) {
                    wrong.push(format!(
                        "{}:{line}: {name} in {place}: {why}",
                        document.name
                    ));
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
