//! Low-rank adapters next to a product, a different one for each row: `y += scale * (x A^T) B^T`.

use crate::cpu;
use crate::device::{Device, Form, Kind, no_backward};
use crate::dtype::LoraType;
use crate::error::KernelError;
use crate::gpu;
use crate::step::Step;
use crate::tensor::Tensor;
use std::convert::Infallible;

/// Memory for the pairs of one adapter, allocated and freed together.
pub struct LoraArena {
    form: Form<cpu::lora::LoraArena, gpu::lora::LoraArena>,
}

/// One adapter's pair of matrices for one linear layer, packed for products.
pub struct LoraPack {
    form: Form<cpu::lora::LoraPack, gpu::lora::LoraPack>,
}

impl LoraPack {
    /// Bytes in the device's memory.
    pub fn bytes(&self) -> usize {
        match &self.form {
            Form::Cpu(pack) => pack.bytes(),
            Form::Gpu(pack) => pack.bytes(),
        }
    }
}

/// The adapters that a step's rows have at one linear layer.
#[derive(Clone, Copy)]
pub struct Lora<'a> {
    /// The step, whose runs say which rows have which slots.
    pub step: &'a Step,
    /// By slot: the adapter's pair for this linear layer, if it has one.
    pub packs: &'a [Option<&'a LoraPack>],
    /// Names the layer: its dropout masks depend on it.
    pub linear: u32,
}

impl<'a> Lora<'a> {
    pub(crate) fn cpu_packs(
        &self,
    ) -> impl Iterator<Item = Option<&'a cpu::lora::LoraPack>> + use<'a> {
        self.packs
            .iter()
            .map(|pack| pack.map(|pack| pack.form.cpu()))
    }

    pub(crate) fn cpu<'b>(
        &'b self,
        packs: &'b [Option<&'b cpu::lora::LoraPack>],
    ) -> cpu::lora::Lora<'b> {
        let step = self.step.form.cpu();
        cpu::lora::Lora {
            runs: &step.runs,
            packs,
            dropout: cpu::lora::Dropout::of(step, self.linear),
        }
    }

    pub(crate) fn gpu(&self) -> gpu::linear::Lora<'a> {
        let packs = self.packs.iter();
        gpu::linear::Lora {
            step: self.step.form.gpu(),
            packs: packs.map(|pack| pack.map(|pack| pack.form.gpu())).collect(),
        }
    }
}

/// One adapter's pair for one linear layer while it trains: its weights, and the gradients that a backward adds to.
///
/// The gradients are on the device until [`Device::read_gradients`].
pub struct LoraGrad<'a> {
    form: Form<cpu::lora::LoraGrad<'a>, Infallible>,
}

/// The host's side of a [`LoraGrad`].
pub struct LoraMaster<'a> {
    /// rank x inputs.
    pub a: &'a [f32],
    /// outputs x rank.
    pub b: &'a [f32],
    /// Rank.
    pub rank: usize,
    /// The scale of the forward.
    pub scale: f32,
    /// Gradient of `a`: the sum so far.
    pub da: &'a mut [f32],
    /// Gradient of `b`: the sum so far.
    pub db: &'a mut [f32],
}

impl Device {
    /// Room for pairs of these shapes (outputs, inputs, rank), and not much more.
    ///
    /// # Errors
    /// The system has no memory.
    pub fn lora_arena(
        &self,
        shapes: impl Iterator<Item = (usize, usize, usize)>,
        dtype: LoraType,
    ) -> Result<LoraArena, KernelError> {
        let form = match self.kind() {
            Kind::Cpu(_) => Form::Cpu(cpu::lora::LoraArena::for_shapes(shapes, dtype)?),
            Kind::Gpu(gpu) => Form::Gpu(gpu.lora_arena(shapes, dtype)?),
        };
        Ok(LoraArena { form })
    }

    /// Packs `a` (rank x inputs) and `b` (outputs x rank), both row-major; `scale` multiplies their product.
    ///
    /// # Errors
    /// The lengths do not fit the shape, or there is no memory.
    pub fn lora_pack(
        &self,
        arena: &LoraArena,
        a: &[f32],
        b: &[f32],
        shape: (usize, usize, usize),
        scale: f32,
        dtype: LoraType,
    ) -> Result<LoraPack, KernelError> {
        let form = match self.kind() {
            Kind::Cpu(_) => Form::Cpu(cpu::lora::LoraPack::new(
                arena.form.cpu(),
                a,
                b,
                shape,
                scale,
                dtype,
            )?),
            Kind::Gpu(gpu) => {
                Form::Gpu(gpu.lora_pack(arena.form.gpu(), a, b, shape, scale, dtype)?)
            }
        };
        Ok(LoraPack { form })
    }

    /// A pair that trains, with the gradients gathered so far. (The CPU works on the host's memory itself; another device
    /// copies it.)
    pub fn lora_grad<'a>(&self, master: LoraMaster<'a>) -> LoraGrad<'a> {
        let form = match self.kind() {
            Kind::Cpu(_) => Form::Cpu(cpu::lora::LoraGrad {
                a: master.a,
                b: master.b,
                rank: master.rank,
                scale: master.scale,
                da: master.da,
                db: master.db,
            }),
            Kind::Gpu(_) => no_backward(),
        };
        LoraGrad { form }
    }

    /// The backward of the adapters next to a product: adds to the gradients of each pair, and to dx.
    ///
    /// With m for the mask of the step's dropout, whose values are 0 or 1 / (1 - share), or 1 without dropout:
    ///
    /// ```text
    /// h = (m * x) A^T    y = scale * h B^T
    /// dh = scale * dy B    dB += scale * dy^T h    dA += dh^T (m * x)    dx += m * (dh A)
    /// ```
    ///
    /// `pairs` are by slot. A run's scales are not used: a pair has its own.
    ///
    /// # Panics
    /// Shapes that do not fit.
    pub fn lora_backward(
        &self,
        x: &Tensor,
        dy: &Tensor,
        step: &Step,
        linear: u32,
        pairs: &mut [Option<&mut LoraGrad<'_>>],
        dx: &mut Tensor,
    ) {
        match self.kind() {
            Kind::Cpu(cpu) => {
                let step = step.form.cpu();
                let mut pairs: Vec<_> = pairs
                    .iter_mut()
                    .map(|pair| pair.as_mut().map(|pair| pair.form.cpu_mut()))
                    .collect();
                cpu.lora_backward(
                    x.form.cpu(),
                    dy.form.cpu(),
                    &step.runs,
                    &mut pairs,
                    cpu::lora::Dropout::of(step, linear),
                    dx.form.cpu_mut(),
                );
            }
            Kind::Gpu(_) => no_backward(),
        }
    }

    /// Copies gradients to the host slices that their pairs were made with. Waits for the device.
    pub fn read_gradients<'a>(&self, gradients: impl IntoIterator<Item = LoraGrad<'a>>) {
        match self.kind() {
            // They are there already.
            Kind::Cpu(_) => drop(gradients),
            Kind::Gpu(_) => no_backward(),
        }
    }
}
