//! The forward of a Llama-family decoder, once: embed, layers, norm, head.

use crate::Adapter;
use formats::config::ModelConfig;
use formats::peft::Module;
use kernels::{
    Compute, Device, Dropout, KernelError, KvCache, KvType, Lora, LoraPack, Norm, Projection,
    RopeTable, RowDropout, Run, Span, Tensor, Weights, Workspace,
};

/// One layer's frozen weights. Query and key rows are in Hugging Face's order, whatever the file's.
pub struct Layer {
    /// The norm in front of attention.
    pub attention_norm: Vec<f32>,
    /// Query projection.
    pub q: Weights,
    /// Key projection.
    pub k: Weights,
    /// Value projection.
    pub v: Weights,
    /// Biases of query, key and value (Qwen2).
    pub biases: Option<[Vec<f32>; 3]>,
    /// The norms of each head of the queries and of the keys (Qwen3).
    pub head_norms: Option<[Vec<f32>; 2]>,
    /// Output projection.
    pub o: Weights,
    /// The norm in front of the feed-forward part.
    pub ffn_norm: Vec<f32>,
    /// Gate projection.
    pub gate: Weights,
    /// Up projection.
    pub up: Weights,
    /// Down projection.
    pub down: Weights,
}

impl Layer {
    fn project<'a>(
        &'a self,
        module: Module,
        bias: Option<&'a [f32]>,
        lora: Lora<'a>,
        out: &'a mut Tensor,
        accumulate: bool,
    ) -> Projection<'a> {
        Projection {
            weights: self.weights(module),
            bias,
            lora,
            out,
            accumulate,
        }
    }

    /// The weights of one of the seven linear layers.
    pub fn weights(&self, module: Module) -> &Weights {
        match module {
            Module::Q => &self.q,
            Module::K => &self.k,
            Module::V => &self.v,
            Module::O => &self.o,
            Module::Gate => &self.gate,
            Module::Up => &self.up,
            Module::Down => &self.down,
        }
    }
}

/// A frozen base model, ready to run.
pub struct Model {
    pub(crate) config: ModelConfig,
    pub(crate) device: Device,
    pub(crate) embedding: Weights,
    pub(crate) layers: Vec<Layer>,
    pub(crate) norm: Vec<f32>,
    /// None: the embedding is the head.
    pub(crate) head: Option<Weights>,
    pub(crate) rope: RopeTable,
}

/// The rows of one step.
#[derive(Clone, Copy)]
pub struct Batch<'a> {
    /// One token a row.
    pub tokens: &'a [u32],
    /// Which rows are which sequence, and where its pages are; together they cover all rows, in order.
    pub spans: &'a [Span<'a>],
    /// Which rows carry which adapters; slots index `adapters`.
    pub runs: &'a [Run],
    /// The adapters of this step.
    pub adapters: &'a [&'a Adapter],
    /// What each row's adapters do not see of their inputs, in training; empty: they see all.
    pub dropout: &'a [RowDropout],
}

impl<'a> Batch<'a> {
    /// Dropout at one linear layer.
    pub fn dropout_at(&self, layer: usize, module: Module) -> Option<Dropout<'a>> {
        (!self.dropout.is_empty()).then_some(Dropout {
            rows: self.dropout,
            linear: (layer * Module::ALL.len() + module as usize) as u32,
        })
    }
}

/// What a step writes on its way. Kept from step to step, so that a step allocates nothing.
///
/// After [`Model::layer`] it holds that layer's activations, which is what the backward reads.
#[derive(Default)]
pub struct Buffers {
    /// The rows in front of q, k, v (normed) with their int8 or bf16 form.
    pub attention_input: Workspace,
    /// The rows in front of gate and up.
    pub ffn_input: Workspace,
    /// The rows in front of o, down and the head.
    pub other_input: Workspace,
    /// Queries in front of the norm of their heads, where there is one.
    pub plain_q: Tensor,
    /// Keys in front of the norm of their heads, where there is one.
    pub plain_k: Tensor,
    /// Queries, rotated.
    pub q: Tensor,
    /// Keys, rotated.
    pub k: Tensor,
    /// Values.
    pub v: Tensor,
    /// Attention's output.
    pub attention: Tensor,
    /// The residual stream between attention and feed-forward; kept on request.
    pub middle: Tensor,
    /// Gate projection.
    pub gate: Tensor,
    /// Up projection.
    pub up: Tensor,
    /// silu(gate) * up.
    pub activated: Tensor,
    residual: Tensor,
    selected: Tensor,
    /// Whether [`Model::layer`] keeps `middle`.
    pub keep_middle: bool,
}

impl Model {
    /// Sizes and constants.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Where it runs.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// A layer's weights.
    pub fn layer_weights(&self, layer: usize) -> &Layer {
        &self.layers[layer]
    }

    /// The token embedding, vocabulary x hidden.
    pub fn embedding(&self) -> &Weights {
        &self.embedding
    }

    /// The output head, vocabulary x hidden.
    pub fn head(&self) -> &Weights {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    /// The norm in front of the head.
    pub fn head_norm(&self) -> Norm<'_> {
        self.norm(&self.norm)
    }

    /// Rotary angles.
    pub fn rope(&self) -> &RopeTable {
        &self.rope
    }

    /// A norm with this model's epsilon.
    pub fn norm<'a>(&self, weight: &'a [f32]) -> Norm<'a> {
        Norm {
            weight,
            eps: self.config.rms_norm_eps,
        }
    }

    /// Bytes of all weights in memory.
    pub fn weight_bytes(&self) -> usize {
        let layers = self
            .layers
            .iter()
            .flat_map(|l| Module::ALL.map(|m| l.weights(m).bytes()));
        layers.sum::<usize>()
            + self.embedding.bytes()
            + self.head.as_ref().map_or(0, Weights::bytes)
    }

    /// Pages for `blocks` blocks in each of `layers` layers.
    ///
    /// # Errors
    /// The system has no memory.
    pub fn new_cache(
        &self,
        layers: usize,
        blocks: usize,
        dtype: KvType,
    ) -> Result<KvCache, KernelError> {
        KvCache::new(
            layers,
            blocks,
            self.config.kv_heads,
            self.config.head_dim,
            dtype,
        )
    }

    /// Bytes of one block over all layers.
    pub fn block_bytes(&self, dtype: KvType) -> usize {
        let c = &self.config;
        KvCache::block_bytes(c.layers, c.kv_heads, c.head_dim, dtype)
    }

    /// Runs a step: `logits` becomes one row of the vocabulary for each of `logit_rows`.
    ///
    /// # Panics
    /// A batch that does not fit the model or the cache; the scheduler's promises are checked, not repaired.
    pub fn forward(
        &self,
        batch: Batch,
        cache: &mut KvCache,
        buffers: &mut Buffers,
        logit_rows: &[u32],
        compute: Compute,
        logits: &mut Tensor,
    ) {
        let mut x = std::mem::take(&mut buffers.residual);
        self.device.embed(&self.embedding, batch.tokens, &mut x);
        for layer in 0..self.layers.len() {
            self.layer(layer, &mut x, batch, cache, layer, buffers, compute);
        }
        let mut selected = std::mem::take(&mut buffers.selected);
        self.device.gather(&x, logit_rows, &mut selected);
        self.project_head(&selected, &mut buffers.other_input, compute, logits);
        buffers.selected = selected;
        buffers.residual = x;
    }

    /// Norm and head over rows of the residual stream.
    pub fn project_head(
        &self,
        x: &Tensor,
        workspace: &mut Workspace,
        compute: Compute,
        logits: &mut Tensor,
    ) {
        let head = Projection {
            weights: self.head(),
            bias: None,
            lora: Lora::NONE,
            out: logits,
            accumulate: false,
        };
        self.device
            .linear(workspace, x, Some(self.head_norm()), &mut [head], compute);
    }

    /// One layer, in place on the residual stream `x`; keys and values go to layer `pages` of the cache.
    #[allow(clippy::too_many_arguments)]
    pub fn layer(
        &self,
        layer: usize,
        x: &mut Tensor,
        batch: Batch,
        cache: &mut KvCache,
        pages: usize,
        buffers: &mut Buffers,
        compute: Compute,
    ) {
        let (device, w, b) = (&self.device, &self.layers[layer], buffers);
        let packs: [Vec<Option<&LoraPack>>; Module::ALL.len()] =
            Module::ALL.map(|m| batch.adapters.iter().map(|a| a.pack(layer, m)).collect());
        let lora = |module: Module| Lora {
            runs: batch.runs,
            packs: &packs[module as usize],
            dropout: batch.dropout_at(layer, module),
        };
        let bias = |i: usize| w.biases.as_ref().map(|b| b[i].as_slice());

        let norm = Some(self.norm(&w.attention_norm));
        let (q, k) = match w.head_norms {
            Some(_) => (&mut b.plain_q, &mut b.plain_k),
            None => (&mut b.q, &mut b.k),
        };
        let mut qkv = [
            w.project(Module::Q, bias(0), lora(Module::Q), &mut *q, false),
            w.project(Module::K, bias(1), lora(Module::K), &mut *k, false),
            w.project(Module::V, bias(2), lora(Module::V), &mut b.v, false),
        ];
        device.linear(&mut b.attention_input, x, norm, &mut qkv, compute);
        if let Some([q_norm, k_norm]) = &w.head_norms {
            device.norm_heads(&b.plain_q, self.norm(q_norm), &mut b.q);
            device.norm_heads(&b.plain_k, self.norm(k_norm), &mut b.k);
        }
        device.rope_store(
            &self.rope,
            &mut b.q,
            &mut b.k,
            &b.v,
            batch.spans,
            cache,
            pages,
        );
        device.attention(&b.q, batch.spans, cache, pages, &mut b.attention);
        let mut o = [w.project(Module::O, None, lora(Module::O), &mut *x, true)];
        device.linear(&mut b.other_input, &b.attention, None, &mut o, compute);
        if b.keep_middle {
            b.middle.copy_from(x);
        }

        let norm = Some(self.norm(&w.ffn_norm));
        let mut gate_up = [
            w.project(Module::Gate, None, lora(Module::Gate), &mut b.gate, false),
            w.project(Module::Up, None, lora(Module::Up), &mut b.up, false),
        ];
        device.linear(&mut b.ffn_input, x, norm, &mut gate_up, compute);
        device.swiglu(&b.gate, &b.up, &mut b.activated);
        let mut down = [w.project(Module::Down, None, lora(Module::Down), x, true)];
        device.linear(&mut b.other_input, &b.activated, None, &mut down, compute);
    }
}
