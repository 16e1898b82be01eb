//! Dropout on the adapters' input, in training alone.
//!
//! A mask is a function of seed, step, row, layer and module: a layer that is run again in the backward sees the
//! mask that it ran with, a resumed run the masks of the whole one, and a step cut into micro-batches those of the large
//! batch. With m for the mask, whose values are 0 or 1 / (1 - p):
//!
//! ```text
//!   xm = m * x    h = xm A^T    y += scale h B^T
//!   dA += scale (dy B)^T xm     dB += scale dy^T h     dx += m * (scale dy B A)
//! ```
//!
//! Only rows of adapters that have dropout take this way; the others are computed beside them as they are without.

use formats::peft::Module;
use kernels::{
    Compute, Device, KernelError, Lora, LoraGrad, Projection, Run, SourceType, Tensor, Weights,
    Workspace,
};
use model::Beside;

use crate::params::LoraParams;
use crate::rng::Rng;

/// The label of this module's random streams.
const DROP: u64 = 0x6472_6f70_0000;

/// Names the masks of one sequence in one step, wherever in a batch it lies.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RowMask {
    /// Share of the inputs that are set to zero.
    pub share: f32,
    /// The adapter's seed.
    pub seed: u64,
    /// The optimizer step, from 0.
    pub step: u64,
    /// The sequence among the adapter's training rows: twice the row's index, and 1 more for a rejected answer.
    pub row: u64,
}

impl RowMask {
    /// Multiplies `values`, the row's inputs of one linear, token after token, with their mask.
    pub fn apply(&self, layer: usize, module: Module, values: &mut [f32]) {
        let labels = [DROP, self.step, self.row, layer as u64, module as u64];
        let mut rng = Rng::new(self.seed, &labels);
        // Kept where 32 random bits are below this.
        let kept = ((1.0 - f64::from(self.share)) * 2f64.powi(32)).round() as u64;
        let scale = 1.0 / (1.0 - self.share);
        for pair in values.chunks_mut(2) {
            let bits = rng.next_u64();
            for (value, bits) in pair.iter_mut().zip([bits >> 32, bits & 0xffff_ffff]) {
                *value *= if bits < kept { scale } else { 0.0 };
            }
        }
    }
}

/// Which rows of a batch drop.
#[derive(Default)]
pub(crate) struct DroppedRows {
    /// Adapter, first row and rows of each run.
    pub runs: Vec<(usize, usize, usize)>,
    /// First row, rows and mask of each sequence, in the order of the rows.
    pub sequences: Vec<(usize, usize, RowMask)>,
}

/// The rows of a batch whose adapters have dropout, and what is computed of them.
pub(crate) struct Dropped<'a> {
    device: &'a Device,
    rows: DroppedRows,
    /// The pairs of each adapter, as the products take them: A, and B times the scale. Empty without dropout.
    pairs: Vec<Vec<(Weights, Weights)>>,
    places: &'a [Vec<Option<usize>>],
    workspace: Workspace,
    masked: Tensor,
    h: Tensor,
    wide: Tensor,
}

impl<'a> Dropped<'a> {
    /// Packs the pairs of the adapters of `rows`.
    ///
    /// # Errors
    /// There is no memory.
    pub fn new(
        device: &'a Device,
        params: &[LoraParams],
        places: &'a [Vec<Option<usize>>],
        rows: DroppedRows,
    ) -> Result<Self, KernelError> {
        let pack = |values: &mut dyn Iterator<Item = f32>, shape| {
            let bytes: Vec<u8> = values.flat_map(f32::to_le_bytes).collect();
            device.pack(SourceType::F32, &bytes, shape, None)
        };
        let mut pairs = Vec::with_capacity(params.len());
        for (adapter, params) in params.iter().enumerate() {
            let mut of_adapter = Vec::new();
            if rows.runs.iter().any(|run| run.0 == adapter) {
                for pair in &params.pairs {
                    let a = pack(&mut pair.a.iter().copied(), (pair.rank, pair.inputs))?;
                    let mut scaled = pair.b.iter().map(|b| b * pair.scale);
                    let b = pack(&mut scaled, (pair.outputs, pair.rank))?;
                    of_adapter.push((a, b));
                }
            }
            pairs.push(of_adapter);
        }
        Ok(Self {
            device,
            rows,
            pairs,
            places,
            workspace: Workspace::default(),
            masked: Tensor::default(),
            h: Tensor::default(),
            wide: Tensor::default(),
        })
    }

    fn place(&self, adapter: usize, layer: usize, module: Module) -> Option<usize> {
        self.places[adapter][layer * Module::ALL.len() + module as usize]
    }

    /// Multiplies `values`, rows `first..` of a linear's inputs of `columns`, with their masks.
    fn mask(&self, layer: usize, module: Module, first: usize, columns: usize, values: &mut [f32]) {
        let rows = values.len() / columns;
        let within = |s: &&(usize, usize, RowMask)| s.0 >= first && s.0 + s.1 <= first + rows;
        for (from, count, mask) in self.rows.sequences.iter().filter(within) {
            let at = (from - first) * columns;
            mask.apply(layer, module, &mut values[at..at + count * columns]);
        }
    }

    /// Adds the gradients of the pairs at one linear, and that of its input: see the formulas above.
    pub fn backward(
        &mut self,
        layer: usize,
        module: Module,
        x: &Tensor,
        dy: &Tensor,
        pairs: &mut [Option<LoraGrad<'_>>],
        dx: &mut Tensor,
    ) {
        let (inputs, outputs) = (x.columns(), dy.columns());
        for (adapter, first, rows) in self.rows.runs.clone() {
            if self.place(adapter, layer, module).is_none() {
                continue;
            }
            let part = |t: &Tensor| {
                let columns = t.columns();
                t.values()[first * columns..(first + rows) * columns].to_vec()
            };
            let mut masked = Tensor::from_vec(rows, inputs, part(x));
            self.mask(layer, module, first, inputs, masked.values_mut());
            let dy = Tensor::from_vec(rows, outputs, part(dy));
            let mut through = Tensor::zeros(rows, inputs);
            let run = Run {
                first: 0,
                rows,
                slots: vec![(adapter as u32, 1.0)],
            };
            self.device
                .lora_backward(&masked, &dy, &[run], pairs, &mut through);
            self.mask(layer, module, first, inputs, through.values_mut());
            let to = &mut dx.values_mut()[first * inputs..(first + rows) * inputs];
            for (to, d) in to.iter_mut().zip(through.values()) {
                *to += d;
            }
        }
    }
}

impl Beside for Dropped<'_> {
    fn add(&mut self, layer: usize, module: Module, x: &Tensor, out: &mut Tensor) {
        let (inputs, outputs) = (x.columns(), out.columns());
        for (adapter, first, rows) in self.rows.runs.clone() {
            let Some(place) = self.place(adapter, layer, module) else {
                continue;
            };
            let mut masked = std::mem::take(&mut self.masked);
            masked.resize(rows, inputs);
            let from = &x.values()[first * inputs..(first + rows) * inputs];
            masked.values_mut().copy_from_slice(from);
            self.mask(layer, module, first, inputs, masked.values_mut());
            let (a, b) = &self.pairs[adapter][place];
            product(self.device, &mut self.workspace, &masked, a, &mut self.h);
            product(self.device, &mut self.workspace, &self.h, b, &mut self.wide);
            let to = &mut out.values_mut()[first * outputs..(first + rows) * outputs];
            for (to, y) in to.iter_mut().zip(self.wide.values()) {
                *to += y;
            }
            self.masked = masked;
        }
    }
}

fn product(
    device: &Device,
    workspace: &mut Workspace,
    x: &Tensor,
    weights: &Weights,
    out: &mut Tensor,
) {
    let plain = Projection {
        weights,
        bias: None,
        lora: Lora::NONE,
        out,
        accumulate: false,
    };
    device.linear(workspace, x, None, &mut [plain], Compute::F32);
}

#[cfg(test)]
mod tests {
    use formats::peft::LoraPair;

    use super::*;
    use crate::backward::places;

    const MASK: RowMask = RowMask {
        share: 0.25,
        seed: 7,
        step: 3,
        row: 2,
    };

    fn mask(mask: RowMask, layer: usize, module: Module) -> Vec<f32> {
        let mut values = vec![1.0; 10_001];
        mask.apply(layer, module, &mut values);
        values
    }

    #[test]
    fn a_mask_has_its_share_and_keeps_the_mean() {
        let values = mask(MASK, 1, Module::Up);
        assert!(values.iter().all(|v| *v == 0.0 || *v == 1.0 / 0.75));
        let mean = values.iter().sum::<f32>() / values.len() as f32;
        assert!((mean - 1.0).abs() < 0.02, "{mean}");
        let none = mask(RowMask { share: 0.0, ..MASK }, 1, Module::Up);
        assert!(none.iter().all(|v| *v == 1.0));
    }

    #[test]
    fn seed_step_row_layer_and_module_name_a_mask() {
        let this = mask(MASK, 1, Module::Up);
        assert_eq!(this, mask(MASK, 1, Module::Up));
        for other in [
            mask(RowMask { seed: 8, ..MASK }, 1, Module::Up),
            mask(RowMask { step: 4, ..MASK }, 1, Module::Up),
            mask(RowMask { row: 3, ..MASK }, 1, Module::Up),
            mask(MASK, 2, Module::Up),
            mask(MASK, 1, Module::Gate),
        ] {
            assert_ne!(this, other);
        }
    }

    fn random(rng: &mut Rng, count: usize) -> Vec<f32> {
        (0..count).map(|_| rng.unit() - 0.5).collect()
    }

    #[track_caller]
    fn close(fast: &[f32], slow: &[f64]) {
        assert_eq!(fast.len(), slow.len());
        for (fast, slow) in fast.iter().zip(slow) {
            assert!((f64::from(*fast) - slow).abs() < 1e-5, "{fast} {slow}");
        }
    }

    /// Every formula of the module's head, as loops.
    #[test]
    fn products_and_gradients_equal_slow_ones() {
        let (inputs, outputs, rank, rows, scale) = (10, 6, 3, 6, 1.5f32);
        let mut rng = Rng::new(1, &[]);
        let pair = LoraPair {
            layer: 0,
            module: Module::Q,
            rank,
            inputs,
            outputs,
            scale,
            a: random(&mut rng, rank * inputs),
            b: random(&mut rng, outputs * rank),
        };
        let params = [LoraParams { pairs: vec![pair] }];
        let pair = &params[0].pairs[0];
        let places = places(&params, 1);
        let device = Device::cpu(Some(2)).unwrap();
        // Rows 1 to 4 are two sequences that drop, the first and the last row are someone else's.
        let other = RowMask { row: 9, ..MASK };
        let dropped_rows = DroppedRows {
            runs: vec![(0, 1, 4)],
            sequences: vec![(1, 3, MASK), (4, 1, other)],
        };
        let mut dropped = Dropped::new(&device, &params, &places, dropped_rows).unwrap();
        let x = Tensor::from_vec(rows, inputs, random(&mut rng, rows * inputs));
        let before = random(&mut rng, rows * outputs);
        let mut out = Tensor::from_vec(rows, outputs, before.clone());
        dropped.add(0, Module::Q, &x, &mut out);

        let mut mask = vec![1.0f32; rows * inputs];
        MASK.apply(0, Module::Q, &mut mask[inputs..4 * inputs]);
        other.apply(0, Module::Q, &mut mask[4 * inputs..5 * inputs]);
        let masked: Vec<f64> = x
            .values()
            .iter()
            .zip(&mask)
            .map(|(x, m)| f64::from(x * m))
            .collect();
        let a = |r: usize, i: usize| f64::from(pair.a[r * inputs + i]);
        let b = |o: usize, r: usize| f64::from(pair.b[o * rank + r]);
        let h = |t: usize, r: usize| {
            (0..inputs)
                .map(|i| masked[t * inputs + i] * a(r, i))
                .sum::<f64>()
        };
        let mut slow: Vec<f64> = before.iter().map(|y| f64::from(*y)).collect();
        for t in 1..5 {
            for o in 0..outputs {
                let y: f64 = (0..rank).map(|r| h(t, r) * b(o, r)).sum();
                slow[t * outputs + o] += f64::from(scale) * y;
            }
        }
        close(out.values(), &slow);

        let dy = Tensor::from_vec(rows, outputs, random(&mut rng, rows * outputs));
        let before = random(&mut rng, rows * inputs);
        let mut dx = Tensor::from_vec(rows, inputs, before.clone());
        let (mut da, mut db) = (vec![0.0; rank * inputs], vec![0.0; outputs * rank]);
        let grad = LoraGrad {
            a: &pair.a,
            b: &pair.b,
            rank,
            scale,
            da: &mut da,
            db: &mut db,
        };
        dropped.backward(0, Module::Q, &x, &dy, &mut [Some(grad)], &mut dx);
        let (mut slow_da, mut slow_db) = (vec![0.0; da.len()], vec![0.0; db.len()]);
        let mut slow: Vec<f64> = before.iter().map(|d| f64::from(*d)).collect();
        for t in 1..5 {
            for r in 0..rank {
                let dh: f64 = (0..outputs)
                    .map(|o| f64::from(dy.row(t)[o]) * b(o, r) * f64::from(scale))
                    .sum();
                for i in 0..inputs {
                    let at = t * inputs + i;
                    slow_da[r * inputs + i] += dh * masked[at];
                    slow[at] += dh * a(r, i) * f64::from(mask[at]);
                }
                for o in 0..outputs {
                    slow_db[o * rank + r] += f64::from(scale) * f64::from(dy.row(t)[o]) * h(t, r);
                }
            }
        }
        close(&da, &slow_da);
        close(&db, &slow_db);
        close(dx.values(), &slow);
    }

    /// What is dropped is made up for: over many seeds the product is that without dropout.
    #[test]
    fn the_mean_over_many_seeds_is_the_product_without_dropout() {
        let (inputs, outputs, rank, seeds) = (24, 4, 2, 4000);
        let mut rng = Rng::new(2, &[]);
        let units = |rng: &mut Rng, count| (0..count).map(|_| rng.unit()).collect::<Vec<f32>>();
        let pair = LoraPair {
            layer: 0,
            module: Module::Down,
            rank,
            inputs,
            outputs,
            scale: 2.0,
            a: units(&mut rng, rank * inputs),
            b: units(&mut rng, outputs * rank),
        };
        let params = [LoraParams { pairs: vec![pair] }];
        let places = places(&params, 1);
        let device = Device::cpu(Some(1)).unwrap();
        let x = Tensor::from_vec(1, inputs, units(&mut rng, inputs));
        let product = |share: f32, seed: u64| {
            let mask = RowMask {
                share,
                seed,
                ..MASK
            };
            let rows = DroppedRows {
                runs: vec![(0, 0, 1)],
                sequences: vec![(0, 1, mask)],
            };
            let mut dropped = Dropped::new(&device, &params, &places, rows).unwrap();
            let mut out = Tensor::zeros(1, outputs);
            dropped.add(0, Module::Down, &x, &mut out);
            out.values().to_vec()
        };
        let plain = product(0.0, 0);
        let mut mean = vec![0.0; outputs];
        for seed in 0..seeds {
            for (mean, y) in mean.iter_mut().zip(product(0.3, seed)) {
                *mean += f64::from(y) / seeds as f64;
            }
        }
        for (mean, plain) in mean.iter().zip(plain) {
            let plain = f64::from(plain);
            assert!((mean - plain).abs() < 0.02 * plain, "{mean} {plain}");
        }
    }
}
