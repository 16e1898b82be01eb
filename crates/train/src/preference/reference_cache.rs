//! Reference log-probabilities of a preference run in a file, so that they are computed once.
//!
//! The file is named by what they depend on (base, start, tokens and masks), so a repeated or resumed run finds it and
//! another run does not. A damaged file is computed again. Does not know the learner.
//!
//! Layout: the key's 64 hex digits, the number of pairs (u64), two f64 a pair, SHA-256 of all that (32 bytes); integers
//! and floats are little-endian.

use std::io;
use std::io::Write as _;
use std::path::Path;

use formats::disk;
use sha2::{Digest, Sha256};

use crate::error::TrainError;
use crate::example::{Example, examples_hash};
use crate::replace_file::replace_file;

/// The bytes of a key.
const KEY_BYTES: u64 = 64;

/// What the reference depends on, as 64 hex digits.
///
/// `base` names the frozen weights, `start` the adapter that the run starts from (none: the bare base), and `answers` are
/// the lists of examples: their hash covers tokenizer, template, system prompt and data. The program's version is
/// part of it, as another version may compute other last bits.
pub(crate) fn key(base: &str, start: Option<&str>, answers: &[&[Example]]) -> String {
    let mut hasher = Sha256::new();
    let mut put = |part: &str| {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    };
    put(env!("CARGO_PKG_VERSION"));
    put(base);
    put(start.unwrap_or_default());
    for examples in answers {
        put(&examples_hash(examples));
    }
    base16ct::lower::encode_string(&hasher.finalize())
}

/// The content of a reference file.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum CachedReference {
    /// There is none.
    Missing,
    /// It is damaged, or not what its name says.
    Damaged,
    /// The log-probabilities of the chosen and the rejected answer of each pair.
    Found(Vec<[f64; 2]>),
}

/// Reads the file at `path`, which should hold `pairs` pairs under `key`.
///
/// # Errors
/// There is a file that cannot be read.
pub(crate) fn read(path: &Path, key: &str, pairs: usize) -> Result<CachedReference, TrainError> {
    let complete = KEY_BYTES + 8 + pairs as u64 * 16 + 32;
    let bytes = match disk::read(path, complete) {
        Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
            return Ok(CachedReference::Damaged);
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(CachedReference::Missing);
        }
        result => result.map_err(TrainError::read(path))?,
    };
    Ok(parse(&bytes, key, pairs).map_or(CachedReference::Damaged, CachedReference::Found))
}

fn parse(bytes: &[u8], key: &str, pairs: usize) -> Option<Vec<[f64; 2]>> {
    let (body, hash) = bytes.split_at_checked(bytes.len().checked_sub(32)?)?;
    let rest = body.strip_prefix(key.as_bytes())?;
    let rest = rest.strip_prefix(&(pairs as u64).to_le_bytes())?;
    if Sha256::digest(body).as_slice() != hash || rest.len() != pairs.checked_mul(16)? {
        return None;
    }
    let number = |bytes: &[u8]| f64::from_le_bytes(std::array::from_fn(|i| bytes[i]));
    let pair = |bytes: &[u8]| [number(&bytes[..8]), number(&bytes[8..])];
    Some(rest.chunks_exact(16).map(pair).collect())
}

/// Writes the file at `path`.
///
/// # Errors
/// It cannot be written.
pub(crate) fn write(path: &Path, key: &str, pairs: &[[f64; 2]]) -> Result<(), TrainError> {
    let mut bytes = key.as_bytes().to_vec();
    bytes.extend((pairs.len() as u64).to_le_bytes());
    bytes.extend(pairs.iter().flatten().flat_map(|x| x.to_le_bytes()));
    let hash = Sha256::digest(&bytes);
    bytes.extend(hash);
    replace_file(path, |file| file.write_all(&bytes))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn reference_round_trips_and_damage_is_detected() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/reference");
        let key = key("base", None, &[&[]]);
        let pairs = [[-1.5, -2.25], [f64::MIN_POSITIVE, -0.0]];
        assert_eq!(read(&path, &key, 2).unwrap(), CachedReference::Missing);
        write(&path, &key, &pairs).unwrap();
        assert_eq!(
            read(&path, &key, 2).unwrap(),
            CachedReference::Found(pairs.to_vec())
        );
        assert_eq!(read(&path, &key, 3).unwrap(), CachedReference::Damaged);
        let other = super::key("other", None, &[&[]]);
        assert_eq!(read(&path, &other, 2).unwrap(), CachedReference::Damaged);
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 0x10;
            fs::write(&path, &flipped).unwrap();
            assert_eq!(
                read(&path, &key, 2).unwrap(),
                CachedReference::Damaged,
                "{at}"
            );
            fs::write(&path, &whole[..at]).unwrap();
            assert_eq!(
                read(&path, &key, 2).unwrap(),
                CachedReference::Damaged,
                "{at}"
            );
        }
    }

    #[test]
    fn key_covers_everything_the_reference_depends_on() {
        let example = |token| Example {
            tokens: vec![1, token],
            loss_mask: vec![false, true],
        };
        let (a, b) = ([example(2)], [example(3)]);
        let keys = [
            key("base", None, &[&a, &b]),
            key("base", None, &[&b, &a]),
            key("base", None, &[&a]),
            key("base", Some("adapter"), &[&a, &b]),
            key("other", None, &[&a, &b]),
        ];
        let different: std::collections::BTreeSet<&String> = keys.iter().collect();
        assert_eq!(different.len(), keys.len());
        assert!(keys.iter().all(|key| key.len() == 64));
    }
}
