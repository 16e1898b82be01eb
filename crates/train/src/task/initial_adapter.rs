//! Starts a task from the parameters of an existing adapter instead of freshly drawn ones.

use formats::config::ModelConfig;
use formats::peft::Module;

use super::TrainTask;
use crate::error::TrainError;
use crate::initial_params::InitialParams;
use crate::lora_init::target_linears;

impl TrainTask {
    /// Sets the initial parameters to `start`, those of an adapter with the content hash `hash`, on a base of `config`. Its rank,
    /// scale and modules replace those in the settings.
    ///
    /// # Errors
    /// [`TrainError::Task`] if its pairs differ in rank or scale, or do not cover whole modules of this base.
    pub fn init_from_adapter(
        &mut self,
        start: InitialParams,
        hash: String,
        config: &ModelConfig,
    ) -> Result<(), TrainError> {
        let refuse = |message: String| {
            TrainError::Task(format!(
                "adapter `{}` cannot continue from the adapter that was named: {message}",
                self.name
            ))
        };
        let pairs = start.shapes();
        let Some(&first) = pairs.first() else {
            return Err(refuse("it has no pairs".to_owned()));
        };
        for pair in pairs {
            if (pair.rank, pair.scale) != (first.rank, first.scale) {
                return Err(refuse(format!(
                    "{} of layer {} has rank {} and scale {}, {} of layer {} has {} and {}; all pairs must have the same rank and scale",
                    pair.module.name(),
                    pair.layer,
                    pair.rank,
                    pair.scale,
                    first.module.name(),
                    first.layer,
                    first.rank,
                    first.scale
                )));
            }
        }
        let modules: Vec<Module> = Module::ALL
            .into_iter()
            .filter(|module| pairs.iter().any(|pair| pair.module == *module))
            .collect();
        let expected = target_linears(config, &modules);
        let fits = expected.len() == pairs.len()
            && expected.iter().zip(pairs).all(|(linear, pair)| {
                (linear.layer, linear.module) == (pair.layer, pair.module)
                    && (linear.inputs, linear.outputs) == (pair.inputs, pair.outputs)
            });
        if !fits {
            return Err(refuse(format!(
                "its {} pairs are not those of {} modules in each of the base's {} layers, in their shapes; take an \
                 adapter of this base that leaves no layer out",
                pairs.len(),
                modules.len(),
                config.layers
            )));
        }
        self.settings.rank = first.rank;
        // alpha / rank gives the same scale, by whichever rule the adapter was scaled.
        self.settings.alpha = first.scale * first.rank as f32;
        self.settings.rslora = false;
        self.settings.target_modules = modules.iter().map(|m| m.name().to_owned()).collect();
        self.settings.check()?;
        self.init = start;
        self.initial_adapter = Some(hash);
        Ok(())
    }
}
