//! Texts without what does not matter when they are compared, and the numbers in them.

use std::collections::BTreeSet;

/// `text` in lower case, its words parted by single spaces and bared of punctuation, each with a digit made `#`.
pub(super) fn masked(text: &str) -> String {
    let word = |word: &str| {
        let bare: String = word
            .chars()
            .filter(|c| c.is_alphanumeric())
            .flat_map(char::to_lowercase)
            .collect();
        if bare.chars().any(char::is_numeric) {
            "#".to_owned()
        } else {
            bare
        }
    };
    let words: Vec<String> = text
        .split_whitespace()
        .map(word)
        .filter(|word| !word.is_empty())
        .collect();
    words.join(" ")
}

/// Runs of at least `least` digits; separators inside a number ("1,299") are passed over.
pub(super) fn numbers(text: &str, least: usize) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut run = String::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c.is_ascii_digit() {
            run.push(c);
        } else if matches!(c, ',' | '\u{a0}' | '\u{202f}')
            && !run.is_empty()
            && chars.peek().is_some_and(char::is_ascii_digit)
        {
            // A thousands separator: the number continues.
        } else {
            found.insert(std::mem::take(&mut run));
        }
    }
    found.insert(run);
    found.retain(|run| run.len() >= least.max(1));
    found
}
