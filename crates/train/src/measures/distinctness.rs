//! How different two tones are: 1 minus the similarity of their answers to the same question.
//!
//! The similarity is chrF (Popović, "chrF: character n-gram F-score for automatic MT evaluation", WMT 2015): n-grams of 1 to 6
//! characters without white space, precision and recall averaged over n. With equal weight for both (beta = 1) it is
//! symmetric, so that no tone is the other one's reference.

use std::collections::HashMap;

/// The longest n-grams compared.
const LONGEST: usize = 6;

/// chrF of two texts with beta = 1, from 0 (no character in common) to 1 (the same but for white space).
///
/// N-gram lengths that one of the texts is too short for are left out; two empty texts are the same.
#[must_use]
pub fn chrf(a: &str, b: &str) -> f64 {
    let [a, b] =
        [a, b].map(|text| -> Vec<char> { text.chars().filter(|c| !c.is_whitespace()).collect() });
    if a.is_empty() || b.is_empty() {
        return f64::from(u8::from(a.is_empty() && b.is_empty()));
    }
    let (mut precision, mut recall, mut lengths) = (0.0, 0.0, 0);
    for n in 1..=LONGEST.min(a.len()).min(b.len()) {
        let mut counts: HashMap<&[char], usize> = HashMap::new();
        for gram in b.windows(n) {
            *counts.entry(gram).or_default() += 1;
        }
        let mut common = 0;
        for gram in a.windows(n) {
            if let Some(left) = counts.get_mut(gram).filter(|left| **left > 0) {
                *left -= 1;
                common += 1;
            }
        }
        precision += f64::from(common) / (a.len() + 1 - n) as f64;
        recall += f64::from(common) / (b.len() + 1 - n) as f64;
        lengths += 1;
    }
    let (precision, recall) = (precision / f64::from(lengths), recall / f64::from(lengths));
    if precision + recall == 0.0 {
        0.0
    } else {
        2.0 * precision * recall / (precision + recall)
    }
}

/// 1 minus the mean [`chrf`] of pairs of answers to the same question: 0 if they have the same words, near 1 if they
/// have nothing in common. None without pairs.
#[must_use]
pub fn distinctness<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Option<f64> {
    let (mut sum, mut count) = (0.0, 0usize);
    for (a, b) in pairs {
        sum += chrf(a, b);
        count += 1;
    }
    (count > 0).then(|| 1.0 - sum / count as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition again, slowly: every n-gram of one text crosses out an equal one of the other.
    fn slow(a: &str, b: &str) -> f64 {
        let grams = |text: &str, n: usize| -> Vec<String> {
            let text: Vec<char> = text.chars().filter(|c| !c.is_whitespace()).collect();
            let starts = 0..(text.len() + 1).saturating_sub(n);
            starts.map(|i| text[i..i + n].iter().collect()).collect()
        };
        let mut ratios = Vec::new();
        for n in 1..=6 {
            let (mine, mut others) = (grams(a, n), grams(b, n));
            let (of_a, of_b) = (mine.len() as f64, others.len() as f64);
            if of_a == 0.0 || of_b == 0.0 {
                continue;
            }
            let mut common = 0.0;
            for gram in mine {
                if let Some(at) = others.iter().position(|other| *other == gram) {
                    others.remove(at);
                    common += 1.0;
                }
            }
            ratios.push((common / of_a, common / of_b));
        }
        let mean = |pick: fn(&(f64, f64)) -> f64| {
            ratios.iter().map(pick).sum::<f64>() / ratios.len() as f64
        };
        let (p, r) = (mean(|x| x.0), mean(|x| x.1));
        if p + r == 0.0 {
            0.0
        } else {
            2.0 * p * r / (p + r)
        }
    }

    #[test]
    fn chrf_matches_its_definition() {
        let texts = [
            "Good to see you! 📦 I've asked our team.",
            "The status of order #12345 has been passed on.",
            "aaaa aaab",
            "aaab",
            "ab",
        ];
        for a in texts {
            for b in texts {
                assert!((chrf(a, b) - slow(a, b)).abs() < 1e-12, "{a:?} {b:?}");
                assert!((chrf(a, b) - chrf(b, a)).abs() < 1e-12, "{a:?} {b:?}");
            }
            assert_eq!(chrf(a, a), 1.0);
        }
        // By hand: unigrams 2/3 and 2/2, bigrams 1/2 and 1/1, so precision 7/12, recall 1.
        assert!((chrf("abc", "ab") - 2.0 * (7.0 / 12.0) / (19.0 / 12.0)).abs() < 1e-12);
    }

    #[test]
    fn equal_texts_are_not_distinct_and_disjoint_texts_are() {
        assert_eq!(chrf("one two", "onetwo"), 1.0);
        assert_eq!(chrf("abc", "xyz"), 0.0);
        assert_eq!((chrf("", "x"), chrf(" ", "")), (0.0, 1.0));
        assert_eq!(distinctness([]), None);
        assert_eq!(distinctness([("abc", "xyz"), ("abc", "abc")]), Some(0.5));
    }
}
