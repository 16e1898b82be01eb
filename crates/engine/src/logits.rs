//! The logits of a step, as the model gives them: whole rows, or only the tokens that sampling needs of a row.

/// The most candidates that a row of a [`Batch`](crate::Batch) may need; sampling that looks at more needs the whole row.
pub const MOST_CANDIDATES: usize = 128;

/// The most probable tokens of a row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Candidates {
    /// Ids with their logits, in descending order; of equals the lower id first. Empty: the row is not a distribution, since it
    /// holds a NaN or +inf, or only -inf.
    pub tokens: Vec<(u32, f32)>,
    /// `ln(sum(exp(logits)))` over the whole vocabulary.
    pub log_sum: f64,
}

/// One row.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Row<'a> {
    /// A number for each token of the vocabulary.
    Whole(&'a [f32]),
    Candidates(&'a Candidates),
}

/// The rows of a step, in the order of [`Batch::logit_rows`](crate::Batch::logit_rows).
#[derive(Debug, Default)]
pub struct Logits {
    /// Whole rows, one after the other.
    values: Vec<f32>,
    /// Where each row is; empty: all are whole.
    rows: Vec<Place>,
}

#[derive(Debug)]
enum Place {
    /// The number of the row in `values`.
    Whole(usize),
    Candidates(Candidates),
}

impl Logits {
    /// All rows are whole: the vector for them, row-major, which still holds those of the previous step.
    pub fn whole(&mut self) -> &mut Vec<f32> {
        self.rows.clear();
        &mut self.values
    }

    /// Some rows are candidates, one entry of `rows` for each row; the others are whole. Returns the vector for these,
    /// row-major, which still holds rows of the previous step.
    pub fn mixed(&mut self, rows: impl IntoIterator<Item = Option<Candidates>>) -> &mut Vec<f32> {
        let mut whole = 0;
        self.rows.clear();
        self.rows.extend(rows.into_iter().map(|row| match row {
            Some(candidates) => Place::Candidates(candidates),
            None => {
                whole += 1;
                Place::Whole(whole - 1)
            }
        }));
        &mut self.values
    }

    /// Checks that these are the logits of `rows` rows.
    ///
    /// # Errors
    /// How many there are.
    pub(crate) fn check(&self, rows: usize, vocab_size: usize) -> Result<(), String> {
        let is_whole = |place: &&Place| matches!(place, Place::Whole(_));
        let (got_rows, whole) = match self.rows.len() {
            0 => (rows, rows),
            all => (all, self.rows.iter().filter(is_whole).count()),
        };
        if got_rows != rows {
            return Err(format!(
                "the model gave {got_rows} rows of logits instead of {rows}"
            ));
        }
        let (got, expected) = (self.values.len(), whole * vocab_size);
        if got != expected {
            return Err(format!("the model gave {got} logits instead of {expected}"));
        }
        Ok(())
    }

    pub(crate) fn row(&self, row: usize, vocab_size: usize) -> Row<'_> {
        let whole = |row: usize| Row::Whole(&self.values[row * vocab_size..][..vocab_size]);
        match self.rows.get(row) {
            None => whole(row),
            Some(Place::Whole(row)) => whole(*row),
            Some(Place::Candidates(candidates)) => Row::Candidates(candidates),
        }
    }
}
