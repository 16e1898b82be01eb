//! Statistics of the lengths of rows in tokens.

use serde::Serialize;

/// Most buckets of a histogram.
const BUCKETS: usize = 12;

/// How long rows are, in tokens, before any is cut.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TokenLengths {
    /// Rows that could be tokenized; a pair counts once for each of its answers.
    pub rows: usize,
    /// Tokens of them all.
    pub tokens: usize,
    /// Number of tokens that would be trained.
    pub trained_tokens: usize,
    /// Tokens of the shortest row.
    pub shortest: usize,
    /// Tokens that half of the rows do not exceed.
    pub median: usize,
    /// Tokens that 19 of 20 rows do not exceed.
    pub p95: usize,
    /// Tokens of the longest row.
    pub longest: usize,
    /// Most tokens of a row.
    pub max_length: usize,
    /// Rows that would be left out for their length; a pair as a whole.
    pub left_out: usize,
    /// Rows that would be cut.
    pub cut: usize,
    /// Rows by their length, without gaps.
    pub histogram: Vec<LengthBucket>,
}

/// Number of rows within a range of lengths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct LengthBucket {
    /// Fewest tokens.
    pub from: usize,
    /// Most tokens.
    pub to: usize,
    /// Number of rows.
    pub rows: usize,
}

/// Counts sorted `lengths` in at most [`BUCKETS`] buckets, as wide as a power of two.
pub(super) fn histogram(lengths: &[usize]) -> Vec<LengthBucket> {
    let (Some(&shortest), Some(&longest)) = (lengths.first(), lengths.last()) else {
        return Vec::new();
    };
    let mut width = 1;
    while longest / width - shortest / width >= BUCKETS {
        width *= 2;
    }
    let bucket = |i: usize| LengthBucket {
        from: i * width,
        to: i * width + width - 1,
        rows: 0,
    };
    let first = shortest / width;
    let mut buckets: Vec<LengthBucket> = (first..=longest / width).map(bucket).collect();
    for length in lengths {
        buckets[length / width - first].rows += 1;
    }
    buckets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_has_its_bucket() {
        for lengths in [vec![7], vec![3, 3, 900], (10..500).collect::<Vec<_>>()] {
            let buckets = histogram(&lengths);
            assert!(buckets.len() <= BUCKETS, "{buckets:?}");
            assert_eq!(buckets.iter().map(|b| b.rows).sum::<usize>(), lengths.len());
            for bucket in &buckets {
                let inside = |length: &&usize| (bucket.from..=bucket.to).contains(*length);
                assert_eq!(lengths.iter().filter(inside).count(), bucket.rows);
            }
            assert!(
                buckets
                    .windows(2)
                    .all(|pair| pair[0].to + 1 == pair[1].from)
            );
        }
        assert!(histogram(&[]).is_empty());
    }
}
