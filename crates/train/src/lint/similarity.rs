//! Texts as sets of words, and the Jaccard similarity of sets.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap};

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

/// For each set the first one before it whose Jaccard similarity is at least `threshold`.
pub(super) fn near_duplicates(sets: &[BTreeSet<&str>], threshold: f64) -> Vec<Option<usize>> {
    near_among(sets, threshold, sets.len())
}

/// As [`near_duplicates`], but only the first `candidates` sets count as matches.
///
/// Prefix filter (Bayardo, Ma, Srikant 2007): with words sorted from rare to frequent, two sets of similarity t share a
/// word among the first |x| - ceil(t|x|) + 1 of each, so only those words are indexed and looked up. Of equal sets only
/// the first is indexed, so that a file of one row many times over costs no more than one of many rows.
pub(super) fn near_among(
    sets: &[BTreeSet<&str>],
    threshold: f64,
    candidates: usize,
) -> Vec<Option<usize>> {
    let threshold = threshold.clamp(0.01, 1.0);
    let mut counts: HashMap<&str, usize> = HashMap::new();
    for word in sets.iter().flatten() {
        *counts.entry(word).or_insert(0) += 1;
    }
    let mut index: HashMap<&str, Vec<usize>> = HashMap::new();
    let mut firsts: HashMap<&BTreeSet<&str>, usize> = HashMap::new();
    let mut found: Vec<Option<usize>> = Vec::with_capacity(sets.len());
    for (i, set) in sets.iter().enumerate() {
        if let Some(&first) = firsts.get(set) {
            // What the first of its equals matched came even before that one.
            found.push(found[first].or(Some(first)));
            continue;
        }
        let mut words: Vec<&str> = set
            .iter()
            .copied()
            .filter(|word| !word.is_empty())
            .collect();
        words.sort_by_key(|word| (counts[word], *word));
        let needed = (threshold * words.len() as f64 - 1e-9).ceil() as usize;
        let prefix = match words.len() {
            0 => 0,
            count => (count - needed.min(count) + 1).min(count),
        };
        let lists = words[..prefix].iter().filter_map(|word| index.get(word));
        let near = |other: &usize| jaccard(set, &sets[*other]) >= threshold - 1e-12;
        found.push(ascending(lists.map(Vec::as_slice)).find(near));
        if i < candidates && !words.is_empty() {
            firsts.insert(set, i);
            for word in &words[..prefix] {
                index.entry(word).or_default().push(i);
            }
        }
    }
    found
}

/// The numbers of ascending lists, in order, each once.
fn ascending<'l>(lists: impl Iterator<Item = &'l [usize]>) -> impl Iterator<Item = usize> {
    let heads = lists.filter_map(|list| list.split_first());
    let mut heads: BinaryHeap<Reverse<(usize, &[usize])>> =
        heads.map(|(first, rest)| Reverse((*first, rest))).collect();
    let mut before = None;
    std::iter::from_fn(move || {
        while let Some(Reverse((number, rest))) = heads.pop() {
            if let Some((next, rest)) = rest.split_first() {
                heads.push(Reverse((*next, rest)));
            }
            if before != Some(number) {
                before = Some(number);
                return before;
            }
        }
        None
    })
}

fn jaccard(a: &BTreeSet<&str>, b: &BTreeSet<&str>) -> f64 {
    let both = a.intersection(b).count();
    both as f64 / (a.len() + b.len() - both).max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    /// The index must find what comparing all pairs finds.
    #[test]
    fn prefix_filter_finds_what_all_pairs_find() {
        let names: Vec<String> = (0..12).map(|i| format!("w{i}")).collect();
        let mut rng = Rng::new(5, &[]);
        for threshold in [0.3, 0.5, 0.75, 0.9, 1.0] {
            let sets: Vec<BTreeSet<&str>> = (0..60)
                .map(|_| {
                    (0..rng.below(9))
                        .map(|_| names[rng.below(12) as usize].as_str())
                        .collect()
                })
                .collect();
            let slow: Vec<Option<usize>> = (0..sets.len())
                .map(|i| {
                    (0..i)
                        .find(|&j| !sets[i].is_empty() && jaccard(&sets[i], &sets[j]) >= threshold)
                })
                .collect();
            assert_eq!(near_duplicates(&sets, threshold), slow, "{threshold}");
        }
    }
}
