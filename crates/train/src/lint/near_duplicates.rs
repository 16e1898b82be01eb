//! Near-duplicates by MinHash and locality-sensitive hashing (Broder, "On the resemblance and containment of documents", 1997; Leskovec,
//! Rajaraman and Ullman, "Mining of Massive Datasets", chapter 3).
//!
//! Every row gets a signature; two rows agree in one place of it with a probability that equals the Jaccard similarity of their words. The
//! signature is cut into bands, and only rows that agree in a whole band are compared. A band of a row is compared with at most
//! [`MAX_LEADERS`] earlier rows, and at most [`MAX_VERIFIED`] word sets are compared for a row, so the work grows with the words of a file and
//! not with the pairs of its rows. A pair above the threshold is missed with a probability below [`MAX_MISS`], more often if one band has
//! more than [`MAX_LEADERS`] rows. What is reported is always checked on the words.

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;

use crate::error::TrainError;
use crate::rng::Rng;
use dataset::stop::check_stop;

/// The length of a signature.
const HASHES: usize = 64;
/// The rows of a band that later rows are compared with: its first ones.
const MAX_LEADERS: usize = 32;
/// The most word sets that are compared with a row's.
const MAX_VERIFIED: u8 = 16;
/// The probability with which a pair at the threshold is missed.
const MAX_MISS: f64 = 1e-4;
/// How far an estimate may be below the threshold: two standard deviations at a similarity of one half.
const SLACK: f64 = 0.125;
/// The seed of the hash functions.
const SEED: u64 = 0x6c6f_7279;

/// The words of a row, as sorted numbers without repetition.
pub(super) type WordSet = Vec<u32>;
type Signature = [u32; HASHES];

/// Numbers for words.
#[derive(Default)]
pub(super) struct Vocabulary(HashMap<String, u32>);

impl Vocabulary {
    /// The words of `texts`, which single spaces separate.
    pub(super) fn words<'t>(&mut self, texts: impl IntoIterator<Item = &'t str>) -> WordSet {
        let mut words = WordSet::new();
        for word in texts.into_iter().flat_map(|text| text.split(' ')) {
            if word.is_empty() {
                continue;
            }
            let next = self.0.len() as u32;
            words.push(match self.0.get(word) {
                Some(&known) => known,
                None => *self.0.entry(word.to_owned()).or_insert(next),
            });
        }
        words.sort_unstable();
        words.dedup();
        words
    }
}

/// For each set an earlier one whose Jaccard similarity is at least `threshold`, the first that is found; only the first `candidates` sets
/// count as earlier ones. Of equal sets, all name what the first names, or else the first.
///
/// # Errors
/// [`TrainError::Stopped`] once `stop` is set.
pub(super) fn near_duplicates(
    sets: &[WordSet],
    threshold: f64,
    candidates: usize,
    stop: &AtomicBool,
) -> Result<Vec<Option<usize>>, TrainError> {
    let threshold = threshold.clamp(0.01, 1.0);
    let mut firsts: HashMap<&[u32], usize> = HashMap::new();
    // The sets that are compared: of equal ones the first.
    let mut distinct = Vec::new();
    let mut first_of = Vec::with_capacity(sets.len());
    for (index, set) in sets.iter().enumerate() {
        let first = match set.is_empty() {
            true => index,
            false => *firsts.entry(set).or_insert(index),
        };
        if first == index && !set.is_empty() {
            distinct.push(index);
        }
        first_of.push(first);
    }
    let search = Search::new(sets, &distinct, threshold, candidates, stop)?;
    let found = search.run(stop)?;
    Ok(first_of
        .iter()
        .enumerate()
        .map(|(index, &first)| match first == index {
            true => found[index],
            false => found[first].or((first < candidates).then_some(first)),
        })
        .collect())
}

struct Search<'s> {
    sets: &'s [WordSet],
    /// The indices of the sets that are compared.
    distinct: &'s [usize],
    /// Their signatures.
    signatures: Vec<Signature>,
    threshold: f64,
    candidates: usize,
    /// The hash values of a band.
    band: usize,
}

impl<'s> Search<'s> {
    fn new(
        sets: &'s [WordSet],
        distinct: &'s [usize],
        threshold: f64,
        candidates: usize,
        stop: &AtomicBool,
    ) -> Result<Search<'s>, TrainError> {
        let hashes = HashFunctions::new();
        let mut signatures = Vec::with_capacity(distinct.len());
        for &index in distinct {
            check_stop(stop)?;
            signatures.push(hashes.signature(&sets[index]));
        }
        Ok(Search {
            sets,
            distinct,
            signatures,
            threshold,
            candidates,
            band: band_length(threshold),
        })
    }

    fn run(&self, stop: &AtomicBool) -> Result<Vec<Option<usize>>, TrainError> {
        let mut found = vec![None; self.sets.len()];
        let mut verified = vec![0u8; self.distinct.len()];
        for band in 0..HASHES / self.band {
            let mut rows: Vec<usize> = (0..self.distinct.len()).collect();
            // A stable sort: the rows with one band stay in their order.
            rows.sort_by(|&a, &b| self.values(a, band).cmp(self.values(b, band)));
            for group in rows.chunk_by(|&a, &b| self.values(a, band) == self.values(b, band)) {
                self.compare_group(group, band, &mut found, &mut verified, stop)?;
            }
        }
        Ok(found)
    }

    /// Compares each row of `group`, which agree in `band`, with the first rows of it.
    fn compare_group(
        &self,
        group: &[usize],
        band: usize,
        found: &mut [Option<usize>],
        verified: &mut [u8],
        stop: &AtomicBool,
    ) -> Result<(), TrainError> {
        let is_candidate = |row: &&usize| self.distinct[**row] < self.candidates;
        let leaders = group.iter().filter(is_candidate).take(MAX_LEADERS);
        let leaders: Vec<usize> = leaders.copied().collect();
        for &row in group {
            check_stop(stop)?;
            let index = self.distinct[row];
            for &leader in leaders.iter().take_while(|&&leader| leader < row) {
                let earlier = self.distinct[leader];
                if found[index].is_some_and(|known| known <= earlier)
                    || verified[row] >= MAX_VERIFIED
                {
                    break;
                }
                // A pair that agrees in an earlier band was compared there.
                let again =
                    (0..band).any(|band| self.values(row, band) == self.values(leader, band));
                if again || self.estimate(row, leader) < self.threshold - SLACK {
                    continue;
                }
                verified[row] += 1;
                if jaccard(&self.sets[index], &self.sets[earlier]) >= self.threshold - 1e-12 {
                    found[index] = Some(earlier);
                }
            }
        }
        Ok(())
    }

    fn values(&self, row: usize, band: usize) -> &[u32] {
        &self.signatures[row][band * self.band..(band + 1) * self.band]
    }

    fn estimate(&self, a: usize, b: usize) -> f64 {
        let pairs = self.signatures[a].iter().zip(&self.signatures[b]);
        let equal: u32 = pairs.map(|(a, b)| u32::from(a == b)).sum();
        f64::from(equal) / HASHES as f64
    }
}

/// The longest band with which a pair at the threshold is found with a probability of at least `1 - MAX_MISS`.
fn band_length(threshold: f64) -> usize {
    let missed = |length: usize| {
        let agrees = threshold.powi(length as i32);
        (1.0 - agrees).powi((HASHES / length) as i32)
    };
    let fits = |length: &usize| missed(*length) <= MAX_MISS;
    (1..=HASHES).rev().find(fits).unwrap_or(1)
}

/// The hash functions `a * mix(word) + b` on 32 bits, with odd `a`.
struct HashFunctions {
    factors: [u32; HASHES],
    terms: [u32; HASHES],
}

impl HashFunctions {
    fn new() -> HashFunctions {
        let mut rng = Rng::new(SEED, &[]);
        let mut draw = || std::array::from_fn(|_| rng.next_u64() as u32);
        let factors: [u32; HASHES] = draw();
        HashFunctions {
            factors: factors.map(|factor| factor | 1),
            terms: draw(),
        }
    }

    fn signature(&self, words: &[u32]) -> Signature {
        let mut least = [u32::MAX; HASHES];
        for &word in words {
            let mixed = mix(word);
            let functions = self.factors.iter().zip(&self.terms);
            for (least, (factor, term)) in least.iter_mut().zip(functions) {
                *least = (*least).min(mixed.wrapping_mul(*factor).wrapping_add(*term));
            }
        }
        least
    }
}

/// Spreads the numbers of words over 32 bits: the last step of MurmurHash3.
fn mix(word: u32) -> u32 {
    let mut mixed = word.wrapping_add(0x9e37_79b9);
    mixed ^= mixed >> 16;
    mixed = mixed.wrapping_mul(0x85eb_ca6b);
    mixed ^= mixed >> 13;
    mixed = mixed.wrapping_mul(0xc2b2_ae35);
    mixed ^ (mixed >> 16)
}

/// The Jaccard similarity of two sorted sets.
fn jaccard(a: &[u32], b: &[u32]) -> f64 {
    let (mut i, mut j, mut both) = (0, 0, 0usize);
    while i < a.len() && j < b.len() {
        match a[i].cmp(&b[j]) {
            std::cmp::Ordering::Less => i += 1,
            std::cmp::Ordering::Greater => j += 1,
            std::cmp::Ordering::Equal => {
                both += 1;
                i += 1;
                j += 1;
            }
        }
    }
    both as f64 / (a.len() + b.len() - both).max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    static RUNS: AtomicBool = AtomicBool::new(false);

    /// Every match is one, and all pairs find hardly more.
    #[test]
    fn bands_find_what_all_pairs_find() {
        let mut rng = Rng::new(5, &[]);
        for (threshold, words, length) in [(0.3, 12, 9), (0.5, 12, 9), (0.9, 40, 40), (1.0, 12, 9)]
        {
            let sets: Vec<WordSet> = (0..200)
                .map(|_| {
                    let drawn = 1 + rng.below(length);
                    let mut set: WordSet = (0..drawn).map(|_| rng.below(words) as u32).collect();
                    set.sort_unstable();
                    set.dedup();
                    set
                })
                .collect();
            let near = |i: usize, j: usize| jaccard(&sets[i], &sets[j]) >= threshold;
            let found = near_duplicates(&sets, threshold, sets.len(), &RUNS).unwrap();
            let mut missed = 0;
            for (i, found) in found.iter().enumerate() {
                match found {
                    Some(other) => assert!(*other < i && near(i, *other), "{threshold}: {i}"),
                    None => missed += usize::from((0..i).any(|j| near(i, j))),
                }
            }
            assert!(missed <= 2, "{threshold}: {missed} rows missed");
        }
    }

    /// A vocabulary so small that every row shares its rarest words with thousands of others.
    #[test]
    fn comparisons_per_row_do_not_grow_with_the_rows() {
        let rows = |count: usize| {
            let mut rng = Rng::new(7, &[]);
            let set = |_| {
                let mut set: WordSet = (0..40).map(|_| rng.below(60) as u32).collect();
                set.sort_unstable();
                set.dedup();
                set
            };
            (0..count).map(set).collect::<Vec<_>>()
        };
        let sets = rows(4000);
        let distinct: Vec<usize> = (0..sets.len()).collect();
        let search = Search::new(&sets, &distinct, 0.9, sets.len(), &RUNS).unwrap();
        let mut found = vec![None; sets.len()];
        let mut verified = vec![0u8; sets.len()];
        for band in 0..HASHES / search.band {
            search
                .compare_group(&distinct, band, &mut found, &mut verified, &RUNS)
                .unwrap();
        }
        assert!(verified.iter().all(|&count| count <= MAX_VERIFIED));
    }

    #[test]
    fn search_ends_when_it_is_stopped() {
        let stop = AtomicBool::new(true);
        let found = near_duplicates(&[vec![1], vec![2]], 0.9, 2, &stop);
        assert!(matches!(found, Err(TrainError::Stopped)));
    }
}
