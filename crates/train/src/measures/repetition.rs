//! Repetition inside an answer: the fraction of its word n-grams that are repeated.
//!
//! seq-rep-4 of Welleck et al., "Neural Text Generation with Unlikelihood Training" (2019), over words instead of tokens, so
//! that it does not depend on the tokenizer: 1 - (different n-grams) / (all n-grams), n = 4.

use std::collections::HashSet;

/// Words of an n-gram.
const N: usize = 4;

/// The share of repeated 4-grams of words in `answer`, 0 to 1; 0 if it has fewer than four words.
#[must_use]
pub fn repetition(answer: &str) -> f64 {
    let words: Vec<&str> = answer.split_whitespace().collect();
    let all = (words.len() + 1).saturating_sub(N);
    if all == 0 {
        return 0.0;
    }
    let different: HashSet<&[&str]> = words.windows(N).collect();
    1.0 - different.len() as f64 / all as f64
}

/// The mean [`repetition`] of several answers; 0 without any.
#[must_use]
pub fn repetition_of<'a>(answers: impl IntoIterator<Item = &'a str>) -> f64 {
    let (mut sum, mut count) = (0.0, 0usize);
    for answer in answers {
        sum += repetition(answer);
        count += 1;
    }
    sum / count.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_repeated_ngrams_count() {
        assert_eq!(repetition("a b c d e f g"), 0.0);
        // a b c d | b c d a | c d a b | d a b c | a b c d: five, one of them twice.
        assert!((repetition("a b c d a b c d") - 0.2).abs() < 1e-12);
        assert!((repetition("no no no no no no") - 2.0 / 3.0).abs() < 1e-12);
        assert_eq!((repetition("a b c"), repetition("")), (0.0, 0.0));
        assert!((repetition_of(["a b c d a b c d", "a"]) - 0.1).abs() < 1e-12);
        assert_eq!(repetition_of([]), 0.0);
    }
}
