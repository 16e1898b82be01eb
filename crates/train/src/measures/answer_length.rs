//! Length of answers in words, compared with the reference answers.

use serde::Serialize;

/// Words of some answers and of their references; words are separated by white space.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct AnswerLengths {
    /// Mean number of words of an answer.
    pub mean: f64,
    /// Median number of words of an answer.
    pub median: f64,
    /// Mean number of words of a reference answer.
    pub reference_mean: f64,
    /// Median number of words of a reference answer.
    pub reference_median: f64,
}

impl AnswerLengths {
    /// The lengths of (answer, reference) pairs; zeros without any.
    #[must_use]
    pub fn new<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let words = |text: &str| text.split_whitespace().count();
        let (answers, references): (Vec<usize>, Vec<usize>) = pairs
            .into_iter()
            .map(|(answer, reference)| (words(answer), words(reference)))
            .unzip();
        Self {
            mean: mean(&answers),
            median: median(answers),
            reference_mean: mean(&references),
            reference_median: median(references),
        }
    }

    /// Mean words of the answers by mean words of the references: 1 if they are equally long; 0 if there are no references.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        if self.reference_mean == 0.0 {
            0.0
        } else {
            self.mean / self.reference_mean
        }
    }
}

fn mean(counts: &[usize]) -> f64 {
    counts.iter().sum::<usize>() as f64 / counts.len().max(1) as f64
}

/// The middle one, or the mean of the two in the middle.
fn median(mut counts: Vec<usize>) -> f64 {
    counts.sort_unstable();
    let middle = counts.len() / 2;
    match counts.len() {
        0 => 0.0,
        odd if odd % 2 == 1 => counts[middle] as f64,
        _ => (counts[middle - 1] + counts[middle]) as f64 / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_count_words() {
        let lengths =
            AnswerLengths::new([("a b c", "a b"), ("a", "a  b\nc d"), ("a b c d e", "a b")]);
        assert_eq!((lengths.mean, lengths.median), (3.0, 3.0));
        assert_eq!(
            (lengths.reference_mean, lengths.reference_median),
            (8.0 / 3.0, 2.0)
        );
        assert_eq!(lengths.ratio(), 1.125);
        assert_eq!(
            AnswerLengths::new([("a b", "a"), ("a b c", "a")]).median,
            2.5
        );
        assert_eq!(AnswerLengths::new([]), AnswerLengths::default());
        assert_eq!(AnswerLengths::default().ratio(), 0.0);
    }
}
