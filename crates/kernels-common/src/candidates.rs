//! The most probable tokens of a row of logits.

/// The most tokens of a row that a device finds.
pub const MOST_CANDIDATES: usize = 128;

/// The most probable tokens of a row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Candidates {
    /// Ids with their logits, in descending order; of equals the lower id first. Empty: the row is not a distribution, since it
    /// holds a NaN or +inf, or only -inf.
    pub tokens: Vec<(u32, f32)>,
    /// `ln(sum(exp(logits)))` over the whole row.
    pub log_sum: f64,
}
