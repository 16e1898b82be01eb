//! A document as the checks see it: what is set as code, the targets of links, and its paragraphs.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::{files, root};

/// One document.
pub(super) struct Document {
    pub name: String,
    /// What is set as code, with its line.
    pub spans: Vec<(usize, String)>,
    /// Lines of fenced blocks.
    pub blocks: Vec<(usize, String)>,
    pub links: Vec<(usize, String)>,
    pub anchors: BTreeSet<String>,
    /// Paragraphs, items of lists and rows of tables, joined to one line each, with their first line.
    pub paragraphs: Vec<(usize, String)>,
}

impl Document {
    pub fn read(path: &Path) -> Document {
        let text = std::fs::read_to_string(path).unwrap();
        Document::parse(
            path.strip_prefix(root()).unwrap().display().to_string(),
            &text,
        )
    }

    pub fn parse(name: String, text: &str) -> Document {
        let mut document = Document {
            name,
            spans: Vec::new(),
            blocks: Vec::new(),
            links: Vec::new(),
            anchors: BTreeSet::new(),
            paragraphs: Vec::new(),
        };
        let mut fenced = false;
        let mut starts = true;
        for (i, line) in text.lines().enumerate() {
            if line.trim_start().starts_with("```") {
                fenced = !fenced;
                starts = true;
            } else if fenced {
                document.blocks.push((i + 1, line.to_owned()));
            } else {
                document.line(i + 1, line);
                starts |= begins_paragraph(line);
                match document.paragraphs.last_mut() {
                    Some((_, paragraph)) if !starts => {
                        paragraph.push(' ');
                        paragraph.push_str(line.trim());
                    }
                    _ => document.paragraphs.push((i + 1, line.trim().to_owned())),
                }
                starts = line.trim().is_empty() || line.starts_with('#');
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

/// Whether a line does not continue the one before it: an empty line, an item, a row or a heading.
fn begins_paragraph(line: &str) -> bool {
    let line = line.trim_start();
    let item = line.trim_start_matches(|c: char| c.is_ascii_digit());
    line.is_empty()
        || ["- ", "* ", "|", "#", ">"]
            .iter()
            .any(|start| line.starts_with(start))
        || item.len() < line.len() && item.starts_with(". ")
}

/// The documents whose names are checked.
pub(super) fn documents() -> Vec<Document> {
    let top = ["ARCHITECTURE.md", "CONTRIBUTING.md", "README.md"];
    let mut paths: Vec<PathBuf> = top.iter().map(|name| root().join(name)).collect();
    paths.extend(files(&root().join("docs"), &[".md"]));
    paths.iter().map(|path| Document::read(path)).collect()
}
