//! The parameters that an adapter starts from: their shapes once its task is loaded, their values only when a run starts.
//!
//! A plan needs the shapes alone, so that planning a run does not take the memory of the run.

use std::fmt;
use std::sync::Arc;

use formats::peft::{LoraPair, PairShape};

use crate::error::TrainError;
use crate::lora_init::{TargetLinear, draw};
use crate::params::LoraParams;
use crate::settings::TrainSettings;

/// Reads the pairs of an existing adapter.
type ReadPairs = dyn Fn() -> Result<Vec<LoraPair>, TrainError> + Send + Sync;

/// The parameters that an adapter starts from.
#[derive(Clone)]
pub struct InitialParams {
    shapes: Vec<PairShape>,
    source: Source,
}

/// Where the values come from.
#[derive(Clone)]
enum Source {
    /// Drawn from this seed.
    Seed(u64),
    /// In memory.
    Params(LoraParams),
    /// Read from an existing adapter.
    Read(Arc<ReadPairs>),
}

impl InitialParams {
    /// Parameters that are drawn with the rank, scale and seed of `settings`, one pair for each of `linears`: see
    /// [`crate::lora_init`].
    #[must_use]
    pub fn drawn(linears: &[TargetLinear], settings: &TrainSettings) -> InitialParams {
        InitialParams {
            shapes: linears
                .iter()
                .map(|linear| linear.pair(settings.rank, settings.scale()))
                .collect(),
            source: Source::Seed(settings.seed),
        }
    }

    /// The parameters of an adapter with `shapes`, whose pairs `read` reads when a run starts.
    pub fn of_adapter(
        shapes: Vec<PairShape>,
        read: impl Fn() -> Result<Vec<LoraPair>, TrainError> + Send + Sync + 'static,
    ) -> InitialParams {
        InitialParams {
            shapes,
            source: Source::Read(Arc::new(read)),
        }
    }

    /// The shapes of its pairs, sorted by layer and module.
    #[must_use]
    pub fn shapes(&self) -> &[PairShape] {
        &self.shapes
    }

    /// The number of parameters.
    #[must_use]
    pub fn count(&self) -> usize {
        let of_pair = |pair: &PairShape| pair.rank * (pair.inputs + pair.outputs);
        self.shapes.iter().map(of_pair).sum()
    }

    /// Draws, copies or reads the values.
    ///
    /// # Errors
    /// An existing adapter cannot be read, or it has changed since its shapes were read.
    pub fn values(&self) -> Result<LoraParams, TrainError> {
        let pairs = match &self.source {
            Source::Seed(seed) => return Ok(draw(&self.shapes, *seed)),
            Source::Params(params) => return Ok(params.clone()),
            Source::Read(read) => read()?,
        };
        if !pairs
            .iter()
            .map(LoraPair::shape)
            .eq(self.shapes.iter().copied())
        {
            return Err(TrainError::Task(
                "the adapter to continue from has changed since the run was planned; start the run again"
                    .to_owned(),
            ));
        }
        Ok(LoraParams { pairs })
    }
}

impl From<LoraParams> for InitialParams {
    fn from(params: LoraParams) -> InitialParams {
        InitialParams {
            shapes: params.pairs.iter().map(LoraPair::shape).collect(),
            source: Source::Params(params),
        }
    }
}

impl fmt::Debug for InitialParams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InitialParams")
            .field("shapes", &self.shapes)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lora_init::lora_init;
    use formats::peft::Module;

    #[test]
    fn drawn_values_have_the_shapes_that_were_planned() {
        let linear = TargetLinear {
            layer: 0,
            module: Module::K,
            inputs: 8,
            outputs: 4,
        };
        let settings = TrainSettings {
            rank: 2,
            ..TrainSettings::default()
        };
        let init = InitialParams::drawn(&[linear], &settings);
        assert_eq!(init.count(), 2 * (8 + 4));
        let values = init.values().unwrap();
        assert_eq!(values, lora_init(&[linear], &settings));
        assert_eq!(values.pairs[0].shape(), init.shapes()[0]);
    }

    #[test]
    fn adapter_that_changed_since_its_shapes_were_read_is_refused() {
        let linear = TargetLinear {
            layer: 0,
            module: Module::K,
            inputs: 8,
            outputs: 4,
        };
        let of_rank = |rank| TrainSettings {
            rank,
            ..TrainSettings::default()
        };
        let shapes = InitialParams::drawn(&[linear], &of_rank(2))
            .shapes()
            .to_vec();
        let read = move || Ok(lora_init(&[linear], &of_rank(4)).pairs);
        let error = InitialParams::of_adapter(shapes, read)
            .values()
            .unwrap_err();
        assert!(error.to_string().contains("has changed"), "{error}");
    }
}
