//! The plan of a run: what it will do and need, as plain data and as JSON.

use serde::Serialize;
use train::estimate::MeasuredStep;
use train::{RunEstimate, TrainError};

use base::memory::AvailableMemory;

/// The plan of a run.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    /// Steps, tokens and memory.
    #[serde(flatten)]
    pub forecast: RunEstimate,
    /// Bytes that the run needs in addition to those in use.
    pub memory_needed: u64,
    /// The limit of the activation cache, in bytes, for [`train::ModelLearner::set_activation_cache`].
    #[serde(skip)]
    pub keep: u64,
    /// Bytes in use before the run starts: the base and the rows.
    pub memory_in_use: Option<u64>,
    /// Memory that the run may use; `None` if it is unknown.
    pub memory_available: Option<AvailableMemory>,
    /// The step that the time is estimated from.
    pub measured: Option<MeasuredStep>,
    /// The estimated duration, in seconds.
    pub seconds: Option<f64>,
}

impl Plan {
    /// A plan without a time; `in_use` and `available` are bytes.
    pub fn new(
        mut forecast: RunEstimate,
        in_use: Option<u64>,
        available: Option<AvailableMemory>,
    ) -> Self {
        let keep = forecast
            .limit_activation_cache(available.map_or(u64::MAX, |available| available.bytes));
        Self {
            keep,
            memory_needed: forecast.memory.total(),
            memory_in_use: in_use,
            memory_available: available,
            forecast,
            measured: None,
            seconds: None,
        }
    }

    /// Checks that the run fits into the available memory, if that is known.
    ///
    /// # Errors
    /// It does not fit.
    pub fn check(&self) -> Result<(), TrainError> {
        match self.memory_available {
            None => Ok(()),
            Some(available) => {
                let whose = available.limit.description();
                self.forecast.check(available.bytes, whose)
            }
        }
    }

    /// Estimates the duration from a measured step.
    pub fn measured(&mut self, step: MeasuredStep) {
        self.seconds = Some(self.forecast.seconds(step.tokens_per_s()));
        self.measured = Some(step);
    }
}
