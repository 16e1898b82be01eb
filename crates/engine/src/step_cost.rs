//! The time that a step takes, learned from the steps that ran, so that a prompt's chunk delays the running decodes by at most
//! `step_latency`.

use std::time::Duration;

/// The weight of a step decays by this factor with each step after it: after 32 steps about a fifth is left.
const DECAY: f64 = 0.95;

/// The line `seconds = fixed + per_row * rows` through the latest steps, by least squares with decaying weights.
#[derive(Debug, Default)]
pub(crate) struct StepCost {
    weight: f64,
    rows: f64,
    seconds: f64,
    rows_rows: f64,
    rows_seconds: f64,
    /// The slope as of the last time that the steps differed in size.
    per_row: Option<f64>,
}

impl StepCost {
    /// A step of `rows` rows took so long.
    pub fn observe(&mut self, rows: usize, took: Duration) {
        let (x, y) = (rows as f64, took.as_secs_f64());
        for (sum, term) in [
            (&mut self.weight, 1.0),
            (&mut self.rows, x),
            (&mut self.seconds, y),
            (&mut self.rows_rows, x * x),
            (&mut self.rows_seconds, x * y),
        ] {
            *sum = *sum * DECAY + term;
        }
        self.per_row = self.slope().or(self.per_row);
    }

    /// How many rows a step may have to take at most `limit`; without a step so far, `usize::MAX`.
    pub fn rows_within(&self, limit: Duration) -> usize {
        if self.weight == 0.0 {
            return usize::MAX;
        }
        let (fixed, per_row) = self.fit();
        if per_row <= 0.0 {
            return usize::MAX;
        }
        // The cast turns a negative number into 0.
        ((limit.as_secs_f64() - fixed) / per_row) as usize
    }

    /// About how many rows take `time`; 0 without a step so far.
    pub fn rows_in(&self, time: Duration) -> usize {
        if self.seconds <= 0.0 {
            return 0;
        }
        (time.as_secs_f64() * self.rows / self.seconds) as usize
    }

    /// The cost of one more row as a fraction of the cost of a token, in a step of `decodes` sequences. 1 until steps of
    /// different sizes ran.
    pub fn relative_row_cost(&self, decodes: usize) -> f64 {
        if self.weight == 0.0 || self.per_row.is_none() {
            return 1.0;
        }
        let (fixed, per_row) = self.fit();
        let rows = decodes as f64 * per_row;
        rows / (fixed + rows)
    }

    /// (fixed, per_row), in seconds. Steps of one size give no slope; then all of the time is assigned to the rows.
    fn fit(&self) -> (f64, f64) {
        let (x, y) = (self.rows / self.weight, self.seconds / self.weight);
        let per_row = self.per_row.unwrap_or(f64::INFINITY).min(y / x);
        (y - per_row * x, per_row)
    }

    /// None if the sizes of the steps differ too little.
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
    fn line_is_learned_from_steps() {
        let mut cost = StepCost::default();
        assert_eq!(cost.rows_within(ms(1.0)), usize::MAX);
        for rows in [1, 100, 8, 200, 3, 50] {
            cost.observe(rows, ms(2.0 + 0.5 * rows as f64));
        }
        for (limit, rows) in [(102.2, 200), (27.2, 50), (2.7, 1), (1.0, 0)] {
            assert_eq!(cost.rows_within(ms(limit)), rows, "{limit} ms");
        }
    }

    #[test]
    fn steps_of_one_size_give_the_time_of_a_row() {
        let mut cost = StepCost::default();
        for _ in 0..5 {
            cost.observe(10, ms(20.0));
        }
        assert_eq!(cost.rows_within(ms(101.0)), 50);
    }

    #[test]
    fn row_is_cheap_when_the_fixed_cost_is_high() {
        let mut cost = StepCost::default();
        assert_eq!(cost.relative_row_cost(1), 1.0);
        for rows in [1, 100, 8] {
            cost.observe(rows, ms(2.0 + 0.5 * rows as f64));
        }
        // The slope is kept while steps have one size.
        for _ in 0..10_000 {
            cost.observe(1, ms(2.5));
        }
        assert!((cost.relative_row_cost(1) - 0.2).abs() < 0.01);
        assert!((cost.relative_row_cost(8) - 4.0 / 6.0).abs() < 0.02);
    }

    #[test]
    fn older_steps_lose_weight() {
        let mut cost = StepCost::default();
        for each in [1.0, 4.0] {
            for rows in [1, 64].repeat(100) {
                cost.observe(rows, ms(each * rows as f64));
            }
        }
        let rows = cost.rows_within(ms(100.0));
        assert!((24..=25).contains(&rows), "{rows}");
    }
}
