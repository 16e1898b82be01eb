//! What a step costs, learned from the steps that ran, so that a prompt's chunk never holds up the answers under way for
//! longer than was promised.

use std::time::Duration;

/// How fast old steps fade: after 32 steps about a fifth of their weight is left.
const FADE: f64 = 0.95;

/// The line `seconds = fixed + each * rows` through the latest steps, by least squares with fading weights.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    weight: f64,
    rows: f64,
    seconds: f64,
    rows_rows: f64,
    rows_seconds: f64,
    /// The slope as of the last time that the steps differed in size.
    each: Option<f64>,
}

impl Pace {
    /// A step of so many rows took so long.
    pub fn observe(&mut self, rows: usize, took: Duration) {
        let (x, y) = (rows as f64, took.as_secs_f64());
        for (sum, term) in [
            (&mut self.weight, 1.0),
            (&mut self.rows, x),
            (&mut self.seconds, y),
            (&mut self.rows_rows, x * x),
            (&mut self.rows_seconds, x * y),
        ] {
            *sum = *sum * FADE + term;
        }
        self.each = self.slope().or(self.each);
    }

    /// How many rows a step may have to take no longer than `limit`; none known yet: as many as there are.
    pub fn rows_within(&self, limit: Duration) -> usize {
        if self.weight == 0.0 {
            return usize::MAX;
        }
        let (fixed, each) = self.line();
        if each <= 0.0 {
            return usize::MAX;
        }
        // A negative number of rows is none.
        ((limit.as_secs_f64() - fixed) / each) as usize
    }

    /// What part of a token's time one more row takes, where `decodes` sequences get a token each in a step.
    pub fn price_of_row(&self, decodes: usize) -> f64 {
        if self.weight == 0.0 || self.each.is_none() {
            return 1.0;
        }
        let (fixed, each) = self.line();
        let rows = decodes as f64 * each;
        rows / (fixed + rows)
    }

    /// (fixed, each). Steps of one size alone tell no slope: then all of the time is put down to the rows.
    fn line(&self) -> (f64, f64) {
        let (x, y) = (self.rows / self.weight, self.seconds / self.weight);
        let each = self.each.unwrap_or(f64::INFINITY).min(y / x);
        (y - each * x, each)
    }

    /// None if the steps are too much alike.
    fn slope(&self) -> Option<f64> {
        let (x, y) = (self.rows / self.weight, self.seconds / self.weight);
        let spread = self.rows_rows / self.weight - x * x;
        (spread > 0.01 * x * x)
            .then(|| ((self.rows_seconds / self.weight - x * y) / spread).max(0.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(milliseconds: f64) -> Duration {
        Duration::from_secs_f64(milliseconds / 1e3)
    }

    #[test]
    fn it_learns_the_line() {
        let mut pace = Pace::default();
        assert_eq!(pace.rows_within(ms(1.0)), usize::MAX);
        for rows in [1, 100, 8, 200, 3, 50] {
            pace.observe(rows, ms(2.0 + 0.5 * rows as f64));
        }
        for (limit, rows) in [(102.2, 200), (27.2, 50), (2.7, 1), (1.0, 0)] {
            assert_eq!(pace.rows_within(ms(limit)), rows, "{limit} ms");
        }
    }

    #[test]
    fn steps_of_one_size_tell_the_time_of_a_row() {
        let mut pace = Pace::default();
        for _ in 0..5 {
            pace.observe(10, ms(20.0));
        }
        assert_eq!(pace.rows_within(ms(101.0)), 50);
    }

    #[test]
    fn a_row_is_cheap_where_steps_are_dear() {
        let mut pace = Pace::default();
        assert_eq!(pace.price_of_row(1), 1.0);
        for rows in [1, 100, 8] {
            pace.observe(rows, ms(2.0 + 0.5 * rows as f64));
        }
        // It is not forgotten while one answer alone is under way.
        for _ in 0..10_000 {
            pace.observe(1, ms(2.5));
        }
        assert!((pace.price_of_row(1) - 0.2).abs() < 0.01);
        assert!((pace.price_of_row(8) - 4.0 / 6.0).abs() < 0.02);
    }

    #[test]
    fn it_forgets_how_fast_it_was() {
        let mut pace = Pace::default();
        for each in [1.0, 4.0] {
            for rows in [1, 64].repeat(100) {
                pace.observe(rows, ms(each * rows as f64));
            }
        }
        let rows = pace.rows_within(ms(100.0));
        assert!((24..=25).contains(&rows), "{rows}");
    }
}
