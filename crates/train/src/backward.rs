//! The decoder's backward, by hand: dX through the frozen base, dA and dB for the adapters, never dW.
//!
//! The forward keeps each layer's input, and of the last layers their activations too ([`crate::activation_cache`]). The backward runs the
//! other layers again to have theirs, then goes through a layer from the last operation to the first:
//!
//! ```text
//! x ─ norm ─ q,k,v ─ (norm of heads) ─ rope ─ attention ─ o ─(+)─ middle ─ norm ─ gate,up ─ swiglu ─ down ─(+)─ out
//! ```
//!
//! It knows rows and tensors; which rows belong to which example is [`crate::learner_model`]'s business.

use formats::peft::Module;
use kernels::{AttentionInputs, Compute, Device, KvCache, LoraGrad, LoraMaster, Tensor};
use model::{Activations, Model, Step, linear_index};

use crate::activation_cache::ActivationCache;
use crate::params::{LoraGrads, LoraParams};

/// The trained pairs of a batch's adapters, with their gradients, on the device.
pub(crate) struct Slots<'a> {
    /// By slot, in the order of the adapter's pairs.
    gradients: Vec<Vec<LoraGrad<'a>>>,
    /// `places[slot][linear layer]`: the index of the pair, if the adapter has one there.
    places: Vec<Vec<Option<usize>>>,
}

impl<'a> Slots<'a> {
    /// The pairs of `params`, gathering on top of what is in `grads`.
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
        let places = params.iter().map(|params| {
            let mut places = vec![None; linear_layers];
            for (i, pair) in params.pairs.iter().enumerate() {
                places[linear_index(pair.layer, pair.module)] = Some(i);
            }
            places
        });
        Slots {
            gradients: gradients.collect(),
            places: places.collect(),
        }
    }

    fn at(&mut self, linear: usize) -> Vec<Option<&mut LoraGrad<'a>>> {
        let each = self.gradients.iter_mut().zip(&self.places);
        each.map(|(gradients, places)| places[linear].map(|i| &mut gradients[i]))
            .collect()
    }

    /// Copies all gradients to the host.
    pub(crate) fn read(self, device: &Device) {
        device.read_gradients(self.gradients.into_iter().flatten());
    }
}

/// Tensors of one layer's backward, kept from layer to layer.
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

/// What all layers of one backward share.
pub(crate) struct Pass<'a> {
    pub model: &'a Model,
    pub step: &'a Step<'a>,
    /// What the forward was computed in, so that a layer run again is the layer that ran.
    pub forward: Compute,
    /// What the products of the backward are computed in.
    pub backward: Compute,
}

impl Pass<'_> {
    /// Turns `dx`, the gradient of a layer's output, into that of its input `x`, and adds the adapters' gradients.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn layer(
        &self,
        layer: usize,
        x: &Tensor,
        dx: &mut Tensor,
        slots: &mut Slots<'_>,
        cache: &mut KvCache,
        kept: &mut ActivationCache,
        buffers: &mut Activations,
        s: &mut Scratch,
    ) {
        let (model, device) = (self.model, self.model.device());
        let w = model.layer_weights(layer);

        let kept = kept.swap(model.config().layers - 1 - layer, buffers);
        if kept {
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
        let b = &*buffers;
        let (attention_input, ffn_input) = if kept {
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
        let inputs = AttentionInputs {
            q: &b.q,
            k: &b.k,
            v: &b.v,
            out: &b.attention,
        };
        let head_dim = model.config().head_dim;
        device.attention_backward(
            &inputs,
            self.step.rows(),
            head_dim,
            &s.attention,
            &mut s.q,
            &mut s.k,
            &mut s.v,
        );
        device.rope_backward(model.rope(), self.step.rows(), head_dim, &mut s.q);
        device.rope_backward(model.rope(), self.step.rows(), head_dim, &mut s.k);
        if let Some([q_norm, k_norm]) = &w.head_norms {
            device.clear(&mut s.plain, s.q.rows(), s.q.columns());
            device.norm_heads_backward(&s.q, &b.plain_q, model.norm(q_norm), &mut s.plain);
            std::mem::swap(&mut s.q, &mut s.plain);
            device.clear(&mut s.plain, s.k.rows(), s.k.columns());
            device.norm_heads_backward(&s.k, &b.plain_k, model.norm(k_norm), &mut s.plain);
            std::mem::swap(&mut s.k, &mut s.plain);
        }
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

    /// dx, or what is added to it, by dy through one linear layer and the adapters beside it.
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
