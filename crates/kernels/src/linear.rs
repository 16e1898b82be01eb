//! Products: projections with norm, bias and mixed LoRA, and their gradient by the input.

use crate::cpu;
use crate::device::{Device, Form, Kind, no_backward};
use crate::dtype::Compute;
use crate::gpu;
use crate::gpu::linear::Prologue;
use crate::lora::Lora;
use crate::norm::Norm;
use crate::tensor::{Tensor, Vector};
use crate::weights::Weights;

/// One projection of the shared rows.
pub struct Projection<'a> {
    /// Frozen weights.
    pub weights: &'a Weights,
    /// Added to every row before LoRA.
    pub bias: Option<&'a Vector>,
    /// Adapters.
    pub lora: Option<Lora<'a>>,
    /// rows x outputs.
    pub out: &'a mut Tensor,
    /// Add to `out` (the residual stream) rather than replace it.
    pub accumulate: bool,
}

/// Buffers of [`Device::linear`] that a caller keeps from step to step.
pub struct Workspace {
    normed: Tensor,
    form: Form<cpu::linear::Workspace, gpu::linear::Workspace>,
}

impl Workspace {
    /// The rows as normalised by the last [`Device::linear`] that had a norm, on a device that trains.
    pub fn normed(&self) -> &Tensor {
        &self.normed
    }
}

fn on_gpu<'a>(projections: &'a mut [Projection]) -> Vec<gpu::linear::Projection<'a>> {
    let on_gpu = |p: &'a mut Projection| gpu::linear::Projection {
        weights: p.weights.form.gpu(),
        bias: p.bias.map(|bias| bias.form.gpu()),
        lora: p.lora.as_ref().map(Lora::gpu),
        out: p.out.form.gpu_mut(),
        accumulate: p.accumulate,
    };
    projections.iter_mut().map(on_gpu).collect()
}

impl Device {
    /// An empty workspace.
    pub fn workspace(&self) -> Workspace {
        let form = match self.kind() {
            Kind::Cpu(_) => Form::Cpu(cpu::linear::Workspace::default()),
            Kind::Gpu(gpu) => Form::Gpu(gpu.workspace()),
        };
        Workspace {
            normed: self.tensor(),
            form,
        }
    }

    /// Projects the rows of `x`: for each projection, `out (+)= norm(x) W^T + bias + sum of scale * (norm(x) A^T) B^T`.
    ///
    /// # Panics
    /// Shapes that do not fit, or adapters on more rows than there are.
    pub fn linear(
        &self,
        workspace: &mut Workspace,
        x: &Tensor,
        norm: Option<Norm>,
        projections: &mut [Projection],
        compute: Compute,
    ) {
        match self.kind() {
            Kind::Cpu(cpu) => {
                let packs: Vec<Vec<Option<&cpu::lora::LoraPack>>> = projections
                    .iter()
                    .map(|p| p.lora.iter().flat_map(Lora::cpu_packs).collect())
                    .collect();
                let mut projections: Vec<cpu::linear::Projection> = projections
                    .iter_mut()
                    .zip(&packs)
                    .map(|(p, packs)| cpu::linear::Projection {
                        weights: p.weights.form.cpu(),
                        bias: p.bias.map(|bias| bias.form.cpu().as_slice()),
                        lora: match &p.lora {
                            Some(lora) => lora.cpu(packs),
                            None => cpu::lora::Lora::NONE,
                        },
                        out: p.out.form.cpu_mut(),
                        accumulate: p.accumulate,
                    })
                    .collect();
                cpu.linear(
                    workspace.form.cpu_mut(),
                    workspace.normed.form.cpu_mut(),
                    x.form.cpu(),
                    norm.map(Norm::cpu),
                    &mut projections,
                    compute,
                );
            }
            Kind::Gpu(gpu) => gpu.linear(
                workspace.form.gpu_mut(),
                workspace.normed.form.gpu_mut(),
                x.form.gpu(),
                norm.map_or(Prologue::None, |norm| Prologue::Norm(norm.gpu())),
                &mut on_gpu(projections),
                compute,
            ),
        }
    }

    /// [`Device::linear`] of `silu(gate) * up`, without a norm. `activated` has these rows on a device that trains.
    ///
    /// # Panics
    /// Shapes that do not fit, or adapters on more rows than there are.
    pub fn swiglu_linear(
        &self,
        workspace: &mut Workspace,
        [gate, up]: [&Tensor; 2],
        activated: &mut Tensor,
        projections: &mut [Projection],
        compute: Compute,
    ) {
        match self.kind() {
            Kind::Cpu(_) => {
                self.swiglu(gate, up, activated);
                self.linear(workspace, activated, None, projections, compute);
            }
            // The kernel in front of the product does it on the way: a launch less.
            Kind::Gpu(gpu) => gpu.linear(
                workspace.form.gpu_mut(),
                activated.form.gpu_mut(),
                gate.form.gpu(),
                Prologue::Swiglu(up.form.gpu()),
                &mut on_gpu(projections),
                compute,
            ),
        }
    }

    /// dx = dy W, the gradient of `x W^T` by x; or added to dx. `Int8` has no backward of its own: it uses that of `F32`.
    ///
    /// # Panics
    /// Shapes that do not fit.
    pub fn linear_backward(
        &self,
        dy: &Tensor,
        weights: &Weights,
        dx: &mut Tensor,
        add: bool,
        compute: Compute,
    ) {
        match self.kind() {
            Kind::Cpu(cpu) => cpu.linear_backward(
                dy.form.cpu(),
                weights.form.cpu(),
                dx.form.cpu_mut(),
                add,
                compute,
            ),
            Kind::Gpu(_) => no_backward(),
        }
    }

    /// [`Device::linear_backward`] of an output head, in place of dx. `dy` is the gradient of a softmax over the outputs: most
    /// of its values are tiny, and in `Bits16` a device may replace those by the mean over all outputs.
    ///
    /// # Panics
    /// Shapes that do not fit.
    pub fn head_backward(&self, dy: &Tensor, weights: &Weights, dx: &mut Tensor, compute: Compute) {
        match self.kind() {
            Kind::Cpu(cpu) => cpu.head_backward(
                dy.form.cpu(),
                weights.form.cpu(),
                dx.form.cpu_mut(),
                compute,
            ),
            Kind::Gpu(_) => no_backward(),
        }
    }
}
