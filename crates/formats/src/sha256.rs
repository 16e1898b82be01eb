//! A SHA-256 over a list of fields.

use sha2::{Digest, Sha256};

/// Hashes fields so that no two different lists of fields can collide by concatenation.
pub(crate) struct FieldHasher(Sha256);

impl FieldHasher {
    pub(crate) fn new() -> Self {
        Self(Sha256::new())
    }

    /// Adds one field, preceded by its length.
    pub(crate) fn field(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
        self
    }

    pub(crate) fn finish(self) -> String {
        base16ct::lower::encode_string(&self.0.finalize())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn field_boundaries_are_part_of_the_hash() {
        let hash = |fields: &[&str]| {
            let mut hasher = FieldHasher::new();
            for field in fields {
                hasher.field(field.as_bytes());
            }
            hasher.finish()
        };
        assert_ne!(hash(&["ab", "c"]), hash(&["a", "bc"]));
        assert_eq!(hash(&["ab", "c"]), hash(&["ab", "c"]));
        assert_eq!(hash(&[]).len(), 64);
    }
}
