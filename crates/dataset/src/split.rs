//! Selects the rows that are held out for validation if there is no validation file.

use sha2::{Digest, Sha256};

use crate::{DataRow, Dataset};

/// For each row whether it is held out: about `fraction` of them, selected by a hash of their text.
///
/// A row falls on the same side whatever rows are added, removed or put in another order, and rows that differ in case and
/// white space alone fall together. Where there are two different rows at least, each side gets one: if no hash is low
/// enough, the lowest is held out, and the highest never is.
#[must_use]
pub fn held_out(rows: &[DataRow], fraction: f64) -> Vec<bool> {
    let rule = HoldOut::of(rows);
    let is_held_out = |row| rule.is_held_out(row, fraction);
    rows.iter().map(is_held_out).collect()
}

/// What decides which rows of a file are held out: the lowest and the highest hash of its rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct HoldOut {
    lowest: u64,
    highest: u64,
}

impl Default for HoldOut {
    /// The rule for no rows.
    fn default() -> HoldOut {
        HoldOut {
            lowest: u64::MAX,
            highest: 0,
        }
    }
}

impl HoldOut {
    /// The rule for all `rows` of a file.
    #[must_use]
    pub fn of(rows: &[DataRow]) -> HoldOut {
        let mut rule = HoldOut::default();
        rows.iter().for_each(|row| rule.add(row));
        rule
    }

    /// Adds a row of the file.
    pub fn add(&mut self, row: &DataRow) {
        let key = key(row);
        self.lowest = self.lowest.min(key);
        self.highest = self.highest.max(key);
    }

    /// Whether `row` is held out, as [`held_out`] decides it.
    #[must_use]
    pub fn is_held_out(&self, row: &DataRow, fraction: f64) -> bool {
        let limit = (fraction.clamp(0.0, 1.0) * u64::MAX as f64) as u64;
        let key = key(row);
        fraction > 0.0 && (key < limit || key == self.lowest) && key != self.highest
    }
}

impl Dataset {
    /// Splits the rows into two lists: (training, validation), as [`held_out`] says, each in the file's order.
    #[must_use]
    pub fn split(self, fraction: f64) -> (Vec<DataRow>, Vec<DataRow>) {
        let sides = held_out(&self.rows, fraction);
        let mut parts = (Vec::new(), Vec::new());
        for (row, held_out) in self.rows.into_iter().zip(sides) {
            if held_out {
                parts.1.push(row)
            } else {
                parts.0.push(row)
            }
        }
        parts
    }
}

fn key(row: &DataRow) -> u64 {
    let mut hasher = Sha256::new();
    for text in [row.input().as_str(), row.output()] {
        for word in text.split_whitespace() {
            hasher.update(word.to_lowercase().as_bytes());
            hasher.update(b" ");
        }
        hasher.update([0]);
    }
    let digest = hasher.finalize();
    u64::from_le_bytes(std::array::from_fn(|i| digest[i]))
}
