//! Paged keys and values, and the attention over them.

use crate::cpu;
use crate::device::{Device, Form, Kind, no_backward};
use crate::dtype::{KvShape, KvType};
use crate::error::KernelError;
use crate::gpu;
use crate::norm::Norm;
use crate::step::Step;
use crate::tensor::Tensor;

/// The keys and values of all layers, in blocks of [`crate::BLOCK_TOKENS`] tokens that are named by number.
pub struct KvCache {
    pub(crate) form: Form<cpu::kv::KvCache, gpu::attention::KvCache>,
}

impl KvCache {
    /// Number of blocks.
    pub fn blocks(&self) -> usize {
        match &self.form {
            Form::Cpu(cache) => cache.blocks,
            Form::Gpu(cache) => cache.blocks,
        }
    }
}

/// cos and sin of `position * theta^(-2i / head_dim)`, for every position of the context.
pub struct RopeTable {
    pub(crate) form: Form<cpu::rope::RopeTable, gpu::attention::RopeTable>,
}

/// The norms of the heads of queries and keys, in front of the rotation (Qwen3).
pub struct HeadNorms<'a> {
    /// Queries before the norm.
    pub plain_q: &'a Tensor,
    /// The norm of each of their heads.
    pub q_norm: Norm<'a>,
    /// Keys before the norm.
    pub plain_k: &'a Tensor,
    /// The norm of each of their heads.
    pub k_norm: Norm<'a>,
}

/// The tensors that attention read and wrote in the forward.
pub struct AttentionInputs<'a> {
    /// Rotated queries, rows x (heads * head_dim).
    pub q: &'a Tensor,
    /// Rotated keys, rows x (kv_heads * head_dim).
    pub k: &'a Tensor,
    /// Values, in the keys' shape.
    pub v: &'a Tensor,
    /// The output, in the queries' shape.
    pub out: &'a Tensor,
}

impl Device {
    /// Room for `blocks` blocks in each layer; on a graphics card for at most as many as one of its buffers holds of a layer.
    ///
    /// # Errors
    /// The system has no memory.
    pub fn kv_cache(
        &self,
        shape: KvShape,
        blocks: usize,
        dtype: KvType,
    ) -> Result<KvCache, KernelError> {
        let form = match self.kind() {
            Kind::Cpu(_) => Form::Cpu(cpu::kv::KvCache::new(shape, blocks, dtype)?),
            Kind::Gpu(gpu) => Form::Gpu(gpu.kv_cache(shape, blocks, dtype)?),
        };
        Ok(KvCache { form })
    }

    /// The rotary angles of `positions` positions, computed in f64; each pair's frequency is divided by its factor, if there
    /// are factors. (Su et al., RoFormer, 2021.)
    pub fn rope_table(
        &self,
        head_dim: usize,
        positions: usize,
        theta: f32,
        factors: Option<&[f32]>,
    ) -> RopeTable {
        let form = match self.kind() {
            Kind::Cpu(_) => Form::Cpu(cpu::rope::RopeTable::new(
                head_dim, positions, theta, factors,
            )),
            Kind::Gpu(gpu) => Form::Gpu(gpu.rope_table(head_dim, positions, theta, factors)),
        };
        RopeTable { form }
    }

    /// Rotates queries and keys by their positions, in place, and writes keys and values into layer `layer` of the cache. With
    /// `norms`, `q` and `k` first become the norms of the heads of other tensors.
    ///
    /// # Panics
    /// Shapes, positions or block numbers out of range.
    #[allow(clippy::too_many_arguments)]
    pub fn rope_store(
        &self,
        table: &RopeTable,
        norms: Option<HeadNorms>,
        q: &mut Tensor,
        k: &mut Tensor,
        v: &Tensor,
        step: &Step,
        cache: &mut KvCache,
        layer: usize,
    ) {
        match self.kind() {
            Kind::Cpu(cpu) => {
                if let Some(norms) = norms {
                    self.norm_heads(norms.plain_q, norms.q_norm, q);
                    self.norm_heads(norms.plain_k, norms.k_norm, k);
                }
                cpu.rope_store(
                    table.form.cpu(),
                    q.form.cpu_mut(),
                    k.form.cpu_mut(),
                    v.form.cpu(),
                    &step.form.cpu().sequences,
                    cache.form.cpu_mut(),
                    layer,
                );
            }
            Kind::Gpu(gpu) => gpu.rope_store(
                table.form.gpu(),
                norms.map(|norms| gpu::attention::HeadNorms {
                    plain_q: norms.plain_q.form.gpu(),
                    q_norm: norms.q_norm.gpu(),
                    plain_k: norms.plain_k.form.gpu(),
                    k_norm: norms.k_norm.gpu(),
                }),
                q.form.gpu_mut(),
                k.form.gpu_mut(),
                v.form.gpu(),
                step.form.gpu(),
                cache.form.gpu_mut(),
                layer,
            ),
        }
    }

    /// Attention of rotated queries over the cache: `out` = softmax(q K^T / sqrt(head_dim)) V, rows x (heads * head_dim).
    ///
    /// # Panics
    /// Shapes or block numbers out of range.
    pub fn attention(
        &self,
        q: &Tensor,
        step: &Step,
        cache: &KvCache,
        layer: usize,
        out: &mut Tensor,
    ) {
        match self.kind() {
            Kind::Cpu(cpu) => cpu.attention(
                q.form.cpu(),
                &step.form.cpu().sequences,
                cache.form.cpu(),
                layer,
                out.form.cpu_mut(),
            ),
            Kind::Gpu(gpu) => gpu.attention(
                q.form.gpu(),
                step.form.gpu(),
                cache.form.gpu(),
                layer,
                out.form.gpu_mut(),
            ),
        }
    }

    /// The gradients of attention by queries, keys and values, for a step whose sequences have no past.
    ///
    /// # Panics
    /// Shapes that do not fit, or a sequence with a past.
    #[allow(clippy::too_many_arguments)]
    pub fn attention_backward(
        &self,
        inputs: &AttentionInputs,
        step: &Step,
        head_dim: usize,
        dout: &Tensor,
        dq: &mut Tensor,
        dk: &mut Tensor,
        dv: &mut Tensor,
    ) {
        match self.kind() {
            Kind::Cpu(cpu) => cpu.attention_backward(
                &cpu::backward::AttentionInputs {
                    q: inputs.q.form.cpu(),
                    k: inputs.k.form.cpu(),
                    v: inputs.v.form.cpu(),
                    out: inputs.out.form.cpu(),
                },
                &step.form.cpu().sequences,
                head_dim,
                dout.form.cpu(),
                dq.form.cpu_mut(),
                dk.form.cpu_mut(),
                dv.form.cpu_mut(),
            ),
            Kind::Gpu(_) => no_backward(),
        }
    }

    /// Rotates gradients back by the step's positions, in place.
    ///
    /// # Panics
    /// Not one row for each token of the step.
    pub fn rope_backward(&self, table: &RopeTable, step: &Step, head_dim: usize, dx: &mut Tensor) {
        match self.kind() {
            Kind::Cpu(cpu) => cpu.rope_backward(
                table.form.cpu(),
                &step.form.cpu().positions,
                head_dim,
                dx.form.cpu_mut(),
            ),
            Kind::Gpu(_) => no_backward(),
        }
    }
}
