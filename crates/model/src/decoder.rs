//! The forward of a Llama-family decoder, once: embed, layers, norm, head.

use crate::adapter::Adapter;
use formats::config::ModelConfig;
use formats::peft::Module;
use kernels::{
    Compute, Device, HeadNorms, KernelError, KvCache, KvShape, KvType, Lora, LoraPack, Norm,
    Projection, RopeTable, RowDropout, Run, Span, StepRows, Tensor, Vector, Weights, Workspace,
};

/// One layer's frozen weights. Query and key rows are in Hugging Face's order, whatever the file's.
pub struct Layer {
    /// The norm in front of attention.
    pub attention_norm: Vector,
    /// Query projection.
    pub q: Weights,
    /// Key projection.
    pub k: Weights,
    /// Value projection.
    pub v: Weights,
    /// Biases of query, key and value (Qwen2).
    pub biases: Option<[Vector; 3]>,
    /// The norms of each head of the queries and of the keys (Qwen3).
    pub head_norms: Option<[Vector; 2]>,
    /// Output projection.
    pub o: Weights,
    /// The norm in front of the feed-forward part.
    pub ffn_norm: Vector,
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
        bias: Option<&'a Vector>,
        lora: Lora<'a>,
        out: &'a mut Tensor,
        accumulate: bool,
    ) -> Projection<'a> {
        Projection {
            weights: self.weights(module),
            bias,
            lora: Some(lora),
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
    pub(crate) norm: Vector,
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

/// The rows of one step, with their metadata on the device.
pub struct Step<'a> {
    rows: kernels::Step,
    adapters: &'a [&'a Adapter],
}

impl Step<'_> {
    /// The metadata of the rows.
    pub fn rows(&self) -> &kernels::Step {
        &self.rows
    }
}

/// The number of a linear layer, counted over all layers of the decoder. Dropout masks depend on it.
pub fn linear_index(layer: usize, module: Module) -> usize {
    layer * Module::ALL.len() + module as usize
}

/// The activations of one layer, which its backward reads. Reused from layer to layer, so that a step allocates nothing.
pub struct Activations {
    /// The rows before q, k, v: normalised, and in the form that the products read.
    pub attention_input: Workspace,
    /// The rows before gate and up.
    pub ffn_input: Workspace,
    /// The rows before o and down.
    pub other_input: Workspace,
    /// Queries before the norm of their heads, if the model has one.
    pub plain_q: Tensor,
    /// Keys before the norm of their heads, if the model has one.
    pub plain_k: Tensor,
    /// Queries, rotated.
    pub q: Tensor,
    /// Keys, rotated.
    pub k: Tensor,
    /// Values.
    pub v: Tensor,
    /// Attention's output.
    pub attention: Tensor,
    /// The residual stream between attention and feed-forward; only if `keep_middle` is set.
    pub middle: Tensor,
    /// Gate projection.
    pub gate: Tensor,
    /// Up projection.
    pub up: Tensor,
    /// silu(gate) * up.
    pub activated: Tensor,
    /// Whether [`Model::layer`] writes `middle`.
    pub keep_middle: bool,
}

impl Activations {
    /// Empty activations.
    pub fn new(device: &Device) -> Activations {
        Activations {
            attention_input: device.workspace(),
            ffn_input: device.workspace(),
            other_input: device.workspace(),
            plain_q: device.tensor(),
            plain_k: device.tensor(),
            q: device.tensor(),
            k: device.tensor(),
            v: device.tensor(),
            attention: device.tensor(),
            middle: device.tensor(),
            gate: device.tensor(),
            up: device.tensor(),
            activated: device.tensor(),
            keep_middle: false,
        }
    }
}

/// Everything that [`Model::forward`] writes on its way. Reused from step to step, so that a step allocates nothing.
pub struct Buffers {
    activations: Activations,
    residual: Tensor,
    selected: Tensor,
    head_input: Workspace,
}

impl Buffers {
    /// Empty buffers.
    pub fn new(device: &Device) -> Buffers {
        Buffers {
            activations: Activations::new(device),
            residual: device.tensor(),
            selected: device.tensor(),
            head_input: device.workspace(),
        }
    }
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
    pub fn norm<'a>(&self, weight: &'a Vector) -> Norm<'a> {
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
        self.device.kv_cache(self.kv_shape(layers), blocks, dtype)
    }

    /// Bytes of one block over all layers.
    pub fn block_bytes(&self, dtype: KvType) -> usize {
        self.kv_shape(self.config.layers).block_bytes(dtype)
    }

    fn kv_shape(&self, layers: usize) -> KvShape {
        KvShape {
            layers,
            kv_heads: self.config.kv_heads,
            head_dim: self.config.head_dim,
        }
    }

    /// Uploads a step's metadata to the device.
    ///
    /// # Panics
    /// A span past the rows, or with too few blocks.
    pub fn step<'a>(&self, batch: Batch<'a>) -> Step<'a> {
        Step {
            rows: self.device.step(StepRows {
                tokens: batch.tokens,
                spans: batch.spans,
                runs: batch.runs,
                dropout: batch.dropout,
            }),
            adapters: batch.adapters,
        }
    }

    /// Looks up the embeddings of the step's tokens.
    pub fn embed(&self, step: &Step, x: &mut Tensor) {
        self.device.embed(&self.embedding, &step.rows, x);
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
        let step = self.step(batch);
        let Buffers {
            activations,
            residual: x,
            selected,
            head_input,
        } = buffers;
        self.embed(&step, x);
        for layer in 0..self.layers.len() {
            self.layer(layer, x, &step, cache, layer, activations, compute);
        }
        self.device.gather_rows(x, logit_rows, selected);
        self.project_head(selected, head_input, compute, logits);
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
            lora: None,
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
        step: &Step,
        cache: &mut KvCache,
        pages: usize,
        b: &mut Activations,
        compute: Compute,
    ) {
        let (device, w) = (&self.device, &self.layers[layer]);
        let packs: [Vec<Option<&LoraPack>>; Module::ALL.len()] =
            Module::ALL.map(|m| step.adapters.iter().map(|a| a.pack(layer, m)).collect());
        let lora = |module: Module| Lora {
            step: &step.rows,
            packs: &packs[module as usize],
            linear: linear_index(layer, module) as u32,
        };
        let bias = |i: usize| w.biases.as_ref().map(|b| &b[i]);

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
        let head_norms = w.head_norms.as_ref().map(|[q_norm, k_norm]| HeadNorms {
            plain_q: &b.plain_q,
            q_norm: self.norm(q_norm),
            plain_k: &b.plain_k,
            k_norm: self.norm(k_norm),
        });
        device.rope_store(
            &self.rope, head_norms, &mut b.q, &mut b.k, &b.v, &step.rows, cache, pages,
        );
        device.attention(&b.q, &step.rows, cache, pages, &mut b.attention);
        let mut o = [w.project(Module::O, None, lora(Module::O), &mut *x, true)];
        device.linear(&mut b.other_input, &b.attention, None, &mut o, compute);
        if b.keep_middle {
            device.copy(x, &mut b.middle);
        }

        let norm = Some(self.norm(&w.ffn_norm));
        let mut gate_up = [
            w.project(Module::Gate, None, lora(Module::Gate), &mut b.gate, false),
            w.project(Module::Up, None, lora(Module::Up), &mut b.up, false),
        ];
        device.linear(&mut b.ffn_input, x, norm, &mut gate_up, compute);
        let mut down = [w.project(Module::Down, None, lora(Module::Down), x, true)];
        device.swiglu_linear(
            &mut b.other_input,
            [&b.gate, &b.up],
            &mut b.activated,
            &mut down,
            compute,
        );
    }
}
