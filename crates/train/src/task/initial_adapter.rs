//! Starts a task from the parameters of an existing adapter instead of freshly drawn ones.

use formats::config::ModelConfig;
use formats::peft::{Module, PairShape};

use super::TrainTask;
use crate::error::TrainError;
use crate::initial_params::InitialParams;
use crate::lora_init::target_linears;
use crate::settings::TrainSettings;

impl TrainSettings {
    /// The same settings with the rank, scale and modules of an adapter with the pairs `shapes`, on a base of `config`.
    ///
    /// # Errors
    /// Why a run cannot continue from it: its pairs differ in rank or scale, or do not cover whole modules of this base.
    pub fn for_adapter(
        &self,
        shapes: &[PairShape],
        config: &ModelConfig,
    ) -> Result<TrainSettings, String> {
        let Some(&first) = shapes.first() else {
            return Err("it has no pairs".to_owned());
        };
        for pair in shapes {
            if (pair.rank, pair.scale) != (first.rank, first.scale) {
                return Err(format!(
                    "{} of layer {} has rank {} and scale {}, {} of layer {} has {} and {}; all pairs must have the same rank and scale",
                    pair.module.name(),
                    pair.layer,
                    pair.rank,
                    pair.scale,
                    first.module.name(),
                    first.layer,
                    first.rank,
                    first.scale
                ));
            }
        }
        let modules: Vec<Module> = Module::ALL
            .into_iter()
            .filter(|module| shapes.iter().any(|pair| pair.module == *module))
            .collect();
        let expected = target_linears(config, &modules);
        let fits = expected.len() == shapes.len()
            && expected.iter().zip(shapes).all(|(linear, pair)| {
                (linear.layer, linear.module) == (pair.layer, pair.module)
                    && (linear.inputs, linear.outputs) == (pair.inputs, pair.outputs)
            });
        if !fits {
            return Err(format!(
                "its {} pairs are not those of {} modules in each of the base's {} layers, in their shapes; take an \
                 adapter of this base that leaves no layer out",
                shapes.len(),
                modules.len(),
                config.layers
            ));
        }
        Ok(TrainSettings {
            rank: first.rank,
            // alpha / rank gives the same scale, by whichever rule the adapter was scaled.
            alpha: first.scale * first.rank as f32,
            rslora: false,
            target_modules: modules.iter().map(|m| m.name().to_owned()).collect(),
            ..self.clone()
        })
    }
}

impl TrainTask {
    /// Sets the initial parameters to `start`, those of an adapter with the content hash `hash`, on a base of `config`. Its rank,
    /// scale and modules replace those in the settings.
    ///
    /// # Errors
    /// [`TrainError::Task`], as [`TrainSettings::for_adapter`].
    pub fn init_from_adapter(
        &mut self,
        start: InitialParams,
        hash: String,
        config: &ModelConfig,
    ) -> Result<(), TrainError> {
        let settings = self.settings.for_adapter(start.shapes(), config);
        self.settings = settings.map_err(|reason| {
            TrainError::Task(format!(
                "adapter `{}` cannot continue from the adapter that was named: {reason}",
                self.name
            ))
        })?;
        self.settings.check()?;
        self.init = start;
        self.initial_adapter = Some(hash);
        Ok(())
    }
}
