//! The decoder's hand-written backward pass: dX through the frozen base, dA and dB for the adapters, never dW.
//!
//! The forward keeps each layer's input, and the activations of the last layers ([`crate::activation_cache`]). The backward
//! recomputes the activations of the other layers. It goes through a layer from the last operation to the first:
//!
//! ```text
//! x ─ norm ─ q,k,v ─ (norm of heads) ─ rope ─ attention ─ o ─(+)─ middle ─ norm ─ gate,up ─ swiglu ─ down ─(+)─ out
//! ```
//!
//! Knows rows and tensors. Does not know which rows belong to which example; [`crate::learner_model`] does.

use formats::peft::Module;
use kernels::{AttentionInputs, Compute, Device, KvCache, LoraGrad, LoraMaster, Tensor};
use model::{Activations, Model, Step, linear_index};

use crate::activation_cache::ActivationCache;
use crate::params::{LoraGrads, LoraParams};

/// The trained pairs of a batch's adapters, with their gradients, on the device.
pub(crate) struct Slots<'a> {
    /// By slot, in the order of the adapter's pairs.
    gradients: Vec<Vec<LoraGrad<'a>>>,
    /// `pair_indices[slot][linear layer]`: the index of the adapter's pair for that layer, if it has one.
    pair_indices: Vec<Vec<Option<usize>>>,
}

impl<'a> Slots<'a> {
    /// Puts the pairs of `params` on the device. Their gradients are added to `grads`.
    pub(crate) fn new(
        model: &Model,
        params: &'a [LoraParams],
        grads: &'a mut [LoraGrads],
    ) -> Slots<'a> {
        let device = model.device();
        let gradients = params.iter().zip(grads).map(|(params, grads)| {
            let pairs = params.pairs.iter().zip(&mut grads.pairs);
            let on_device = pairs.map(|(pair, grad)| {
                device.lora_grad(LoraMaster {
                    a: &pair.a,
                    b: &pair.b,
                    rank: pair.rank,
                    scale: pair.scale,
                    da: &mut grad.a,
                    db: &mut grad.b,
                })
            });
            on_device.collect()
        });
        let linear_layers = model.config().layers * Module::ALL.len();
        let pair_indices = params.iter().map(|params| {
            let mut pair_indices = vec![None; linear_layers];
            for (i, pair) in params.pairs.iter().enumerate() {
                pair_indices[linear_index(pair.layer, pair.module)] = Some(i);
            }
            pair_indices
        });
        Slots {
            gradients: gradients.collect(),
            pair_indices: pair_indices.collect(),
        }
    }

    fn at(&mut self, linear: usize) -> Vec<Option<&mut LoraGrad<'a>>> {
        let each = self.gradients.iter_mut().zip(&self.pair_indices);
        each.map(|(gradients, pair_indices)| pair_indices[linear].map(|i| &mut gradients[i]))
            .collect()
    }

    /// Copies all gradients to the host.
    pub(crate) fn read(self, device: &Device) {
        device.read_gradients(self.gradients.into_iter().flatten());
    }
}

/// Scratch tensors of one layer's backward, reused by every layer.
pub(crate) struct Scratch {
    out: Tensor,
    attention_input: Tensor,
    ffn_input: Tensor,
    activated: Tensor,
    gate: Tensor,
    up: Tensor,
    normed: Tensor,
    attention: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plain: Tensor,
}

impl Scratch {
    pub(crate) fn new(device: &Device) -> Scratch {
        Scratch {
            out: device.tensor(),
            attention_input: device.tensor(),
            ffn_input: device.tensor(),
            activated: device.tensor(),
            gate: device.tensor(),
            up: device.tensor(),
            normed: device.tensor(),
            attention: device.tensor(),
            q: device.tensor(),
            k: device.tensor(),
            v: device.tensor(),
            plain: device.tensor(),
        }
    }
}

/// The settings that all layers of one backward pass share.
pub(crate) struct Pass<'a> {
    pub model: &'a Model,
    pub step: &'a Step<'a>,
    /// The arithmetic of the forward pass, so that a recomputed layer has the same bits.
    pub forward: Compute,
    /// The arithmetic of the backward's products.
    pub backward: Compute,
}

impl Pass<'_> {
    /// Replaces `dx`, the gradient by a layer's output, with the gradient by its input `x`, and adds the adapters' gradients.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn layer(
        &self,
        layer: usize,
        x: &Tensor,
        dx: &mut Tensor,
        slots: &mut Slots<'_>,
        cache: &mut KvCache,
        activation_cache: &mut ActivationCache,
        buffers: &mut Activations,
        s: &mut Scratch,
    ) {
        let (model, device) = (self.model, self.model.device());
        let w = model.layer_weights(layer);

        let cached = activation_cache.swap(model.config().layers - 1 - layer, buffers);
        self.restore(layer, x, cached, cache, buffers, s);
        let b = &*buffers;
        let (attention_input, ffn_input) = if cached {
            (&s.attention_input, &s.ffn_input)
        } else {
            (b.attention_input.normed(), b.ffn_input.normed())
        };

        self.linear(
            (layer, Module::Down),
            &b.activated,
            dx,
            slots,
            &mut s.activated,
            false,
        );
        device.swiglu_backward(&s.activated, &b.gate, &b.up, &mut s.gate, &mut s.up);
        let (gate, up) = ((layer, Module::Gate), (layer, Module::Up));
        self.linear(gate, ffn_input, &s.gate, slots, &mut s.normed, false);
        self.linear(up, ffn_input, &s.up, slots, &mut s.normed, true);
        device.rmsnorm_backward(&s.normed, &b.middle, model.norm(&w.ffn_norm), dx);

        let o = (layer, Module::O);
        self.linear(o, &b.attention, dx, slots, &mut s.attention, false);
        attention_backward(
            model,
            self.step,
            layer,
            b,
            AttentionGrads {
                out: &s.attention,
                q: &mut s.q,
                k: &mut s.k,
                v: &mut s.v,
                plain: &mut s.plain,
            },
        );
        for (module, dy, add) in [
            (Module::Q, &s.q, false),
            (Module::K, &s.k, true),
            (Module::V, &s.v, true),
        ] {
            let at = (layer, module);
            self.linear(at, attention_input, dy, slots, &mut s.normed, add);
        }
        device.rmsnorm_backward(&s.normed, x, model.norm(&w.attention_norm), dx);
    }

    /// Completes the activations of `layer`: the norms and the SwiGLU of `cached` ones, or else all, by running the layer again.
    fn restore(
        &self,
        layer: usize,
        x: &Tensor,
        cached: bool,
        cache: &mut KvCache,
        buffers: &mut Activations,
        s: &mut Scratch,
    ) {
        let (model, device) = (self.model, self.model.device());
        if cached {
            let w = model.layer_weights(layer);
            let norms = [
                (x, &w.attention_norm, &mut s.attention_input),
                (&buffers.middle, &w.ffn_norm, &mut s.ffn_input),
            ];
            for (from, weight, to) in norms {
                device.rmsnorm(from, model.norm(weight), to);
            }
            device.swiglu(&buffers.gate, &buffers.up, &mut buffers.activated);
        } else {
            device.copy(x, &mut s.out);
            buffers.keep_middle = true;
            let out = &mut s.out;
            model.layer(layer, out, self.step, cache, 0, buffers, self.forward);
        }
    }

    /// Writes the gradient by the input of one linear layer and its adapters to `dx`, or adds it if `add`.
    fn linear(
        &self,
        (layer, module): (usize, Module),
        x: &Tensor,
        dy: &Tensor,
        slots: &mut Slots<'_>,
        dx: &mut Tensor,
        add: bool,
    ) {
        let (device, weights) = (
            self.model.device(),
            self.model.layer_weights(layer).weights(module),
        );
        device.linear_backward(dy, weights, dx, add, self.backward);
        let linear = linear_index(layer, module);
        let mut pairs = slots.at(linear);
        let rows = self.step.rows();
        device.lora_backward(x, dy, rows, linear as u32, &mut pairs, dx);
    }
}

/// The gradients of an attention: `out` by its output; `q`, `k` and `v` by its inputs before the norm of heads and RoPE.
struct AttentionGrads<'a> {
    out: &'a Tensor,
    q: &'a mut Tensor,
    k: &'a mut Tensor,
    v: &'a mut Tensor,
    /// Scratch for the norm of heads.
    plain: &'a mut Tensor,
}

/// Goes back through attention, RoPE and the norm of heads.
fn attention_backward(
    model: &Model,
    step: &Step<'_>,
    layer: usize,
    b: &Activations,
    grads: AttentionGrads<'_>,
) {
    let device = model.device();
    let AttentionGrads {
        out,
        q,
        k,
        v,
        plain,
    } = grads;
    let inputs = AttentionInputs {
        q: &b.q,
        k: &b.k,
        v: &b.v,
        out: &b.attention,
    };
    let head_dim = model.config().head_dim;
    device.attention_backward(&inputs, step.rows(), head_dim, out, q, k, v);
    device.rope_backward(model.rope(), step.rows(), head_dim, q);
    device.rope_backward(model.rope(), step.rows(), head_dim, k);
    if let Some([q_norm, k_norm]) = &model.layer_weights(layer).head_norms {
        for (gradient, input, norm) in [(q, &b.plain_q, q_norm), (k, &b.plain_k, k_norm)] {
            device.clear(plain, gradient.rows(), gradient.columns());
            device.norm_heads_backward(gradient, input, model.norm(norm), plain);
            std::mem::swap(gradient, plain);
        }
    }
}
