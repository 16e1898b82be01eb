//! Initial parameters of an adapter, as PEFT draws them: A uniform, B zero, so that it starts equal to the base.
//!
//! Knows only shapes. Every tensor has its own random stream, named by seed, layer and module: the start does not depend on
//! which other modules or adapters are trained.

use formats::config::ModelConfig;
use formats::peft::{Module, PairShape};

use crate::params::LoraParams;
use crate::rng::Rng;
use crate::settings::TrainSettings;

/// One linear layer of the base that gets a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TargetLinear {
    /// The decoder layer, from 0.
    pub layer: usize,
    /// The linear layer within it.
    pub module: Module,
    /// Input features.
    pub inputs: usize,
    /// Output features.
    pub outputs: usize,
}

impl TargetLinear {
    /// The shape of its pair with this rank and scale.
    #[must_use]
    pub fn pair(&self, rank: usize, scale: f32) -> PairShape {
        PairShape {
            layer: self.layer,
            module: self.module,
            rank,
            inputs: self.inputs,
            outputs: self.outputs,
            scale,
        }
    }
}

/// The linears of a model that `modules` name, sorted by layer, in the order of [`Module::ALL`] within one.
#[must_use]
pub fn target_linears(config: &ModelConfig, modules: &[Module]) -> Vec<TargetLinear> {
    let of_layer = |layer: usize| {
        Module::ALL
            .into_iter()
            .filter(|module| modules.contains(module))
            .map(move |module| {
                let (inputs, outputs) = module.shape(config);
                TargetLinear {
                    layer,
                    module,
                    inputs,
                    outputs,
                }
            })
    };
    (0..config.layers).flat_map(of_layer).collect()
}

/// The number of parameters of an adapter of this rank on `linears`.
#[must_use]
pub fn parameter_count(linears: &[TargetLinear], rank: usize) -> u64 {
    let of_linear = |linear: &TargetLinear| (rank * (linear.inputs + linear.outputs)) as u64;
    linears.iter().map(of_linear).sum()
}

/// Draws the parameters of a new adapter with the rank, scale and seed of `settings`.
///
/// A is Kaiming-uniform with a = sqrt(5), that is uniform in +-1/sqrt(inputs); B is zero.
#[must_use]
pub fn lora_init(linears: &[TargetLinear], settings: &TrainSettings) -> LoraParams {
    let pair = |linear: &TargetLinear| linear.pair(settings.rank, settings.scale());
    let shapes: Vec<PairShape> = linears.iter().map(pair).collect();
    draw(&shapes, settings.seed)
}

/// [`lora_init`] for pairs of these shapes.
pub(crate) fn draw(shapes: &[PairShape], seed: u64) -> LoraParams {
    let mut params = LoraParams::zeros(shapes);
    for pair in &mut params.pairs {
        let module = Module::ALL
            .into_iter()
            .position(|module| module == pair.module)
            .unwrap_or(0);
        let mut rng = Rng::new(seed, &[INIT, pair.layer as u64, module as u64]);
        let bound = 1.0 / (pair.inputs.max(1) as f32).sqrt();
        pair.a.fill_with(|| (2.0 * rng.unit() - 1.0) * bound);
    }
    params
}

/// The label of this module's random streams.
const INIT: u64 = 0x696e_6974_0000;

#[cfg(test)]
mod tests {
    use super::*;

    fn linear(layer: usize, module: Module) -> TargetLinear {
        TargetLinear {
            layer,
            module,
            inputs: 576,
            outputs: 192,
        }
    }

    fn of(rank: usize, seed: u64) -> TrainSettings {
        TrainSettings {
            rank,
            seed,
            ..TrainSettings::default()
        }
    }

    #[test]
    fn a_is_uniform_and_b_is_zero() {
        let params = lora_init(&[linear(0, Module::K)], &of(16, 1));
        let pair = &params.pairs[0];
        assert_eq!(
            (pair.a.len(), pair.b.len(), pair.scale),
            (16 * 576, 192 * 16, 2.0)
        );
        assert!(pair.b.iter().all(|x| *x == 0.0));
        let bound = 1.0 / 24.0;
        assert!(pair.a.iter().all(|x| x.abs() <= bound));
        let mean = pair.a.iter().sum::<f32>() / pair.a.len() as f32;
        let square = pair.a.iter().map(|x| x * x).sum::<f32>() / pair.a.len() as f32;
        assert!(mean.abs() < bound * 0.03, "{mean}");
        assert!(
            (square / (bound * bound / 3.0) - 1.0).abs() < 0.05,
            "{square}"
        );
    }

    #[test]
    fn initial_tensor_depends_only_on_seed_layer_and_module() {
        let both = lora_init(&[linear(0, Module::Q), linear(1, Module::Up)], &of(4, 9));
        let alone = lora_init(&[linear(1, Module::Up)], &of(4, 9));
        assert_eq!(both.pairs[1], alone.pairs[0]);
        assert_ne!(both.pairs[0].a, both.pairs[1].a);
        assert_ne!(
            lora_init(&[linear(1, Module::Up)], &of(4, 10)).pairs[0].a,
            alone.pairs[0].a
        );
        // Bit-stable across releases: these numbers are part of what a seed means.
        assert_eq!(
            alone.pairs[0].a[..3]
                .iter()
                .map(|x| x.to_bits())
                .collect::<Vec<_>>(),
            STABLE
        );
    }

    const STABLE: [u32; 3] = [0xbd06_baab, 0x3d01_c7c2, 0xbd22_745e];
}
