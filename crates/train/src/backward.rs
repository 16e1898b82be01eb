//! The decoder's backward, by hand: dX through the frozen base, dA and dB for the adapters, never dW.
//!
//! The forward keeps each layer's input, and of the last layers their activations too ([`crate::kept`]). The backward runs the
//! other layers again to have theirs, then goes through a layer from the last operation to the first:
//!
//! ```text
//! x ─ norm ─ q,k,v ─ (norm of heads) ─ rope ─ attention ─ o ─(+)─ middle ─ norm ─ gate,up ─ swiglu ─ down ─(+)─ out
//! ```
//!
//! It knows rows and tensors; which rows belong to which example is [`crate::learner_model`]'s business.

use formats::peft::Module;
use kernels::{AttentionInputs, Compute, KvCache, LoraGrad, Tensor};
use model::{Batch, Buffers, Model};

use crate::kept::ActivationCache;
use crate::params::{LoraGrads, LoraParams};

/// Where the gradients of a batch's slots are gathered: for each slot, its masters and its gradients.
pub(crate) struct Slots<'a> {
    pub params: &'a [LoraParams],
    pub grads: &'a mut [LoraGrads],
    /// `places[slot][layer * 7 + module]`: the pair's index, if the adapter has one there.
    pub places: &'a [Vec<Option<usize>>],
}

impl Slots<'_> {
    fn at(&mut self, layer: usize, module: Module) -> Vec<Option<LoraGrad<'_>>> {
        let place = layer * Module::ALL.len() + module as usize;
        let each = self
            .params
            .iter()
            .zip(self.grads.iter_mut())
            .zip(self.places);
        each.map(|((params, grads), places)| {
            let i = places[place]?;
            let (pair, grad) = (&params.pairs[i], &mut grads.pairs[i]);
            Some(LoraGrad {
                a: &pair.a,
                b: &pair.b,
                rank: pair.rank,
                scale: pair.scale,
                da: &mut grad.a,
                db: &mut grad.b,
            })
        })
        .collect()
    }
}

/// Which pair of each slot lies at which layer and module.
pub(crate) fn places(params: &[LoraParams], layers: usize) -> Vec<Vec<Option<usize>>> {
    let of = |params: &LoraParams| {
        let mut places = vec![None; layers * Module::ALL.len()];
        for (i, pair) in params.pairs.iter().enumerate() {
            places[pair.layer * Module::ALL.len() + pair.module as usize] = Some(i);
        }
        places
    };
    params.iter().map(of).collect()
}

/// Tensors of one layer's backward, kept from layer to layer.
#[derive(Default)]
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

/// What every layer of one backward shares.
pub(crate) struct Pass<'a> {
    pub model: &'a Model,
    pub batch: Batch<'a>,
    /// (first row, rows) of each sequence.
    pub sequences: &'a [(usize, usize)],
    /// The position of each row.
    pub positions: &'a [u32],
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
        buffers: &mut Buffers,
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
            s.out.copy_from(x);
            buffers.keep_middle = true;
            let (out, batch) = (&mut s.out, self.batch);
            model.layer(layer, out, batch, cache, 0, buffers, self.forward);
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
            self.sequences,
            head_dim,
            &s.attention,
            &mut s.q,
            &mut s.k,
            &mut s.v,
        );
        device.rope_backward(model.rope(), self.positions, head_dim, &mut s.q);
        device.rope_backward(model.rope(), self.positions, head_dim, &mut s.k);
        if let Some([q_norm, k_norm]) = &w.head_norms {
            zeros_like(&mut s.plain, &s.q);
            device.norm_heads_backward(&s.q, &b.plain_q, model.norm(q_norm), &mut s.plain);
            std::mem::swap(&mut s.q, &mut s.plain);
            zeros_like(&mut s.plain, &s.k);
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
        let dropout = self.batch.dropout_at(layer, module);
        let mut pairs = slots.at(layer, module);
        device.lora_backward(x, dy, self.batch.runs, &mut pairs, dropout, dx);
    }
}

fn zeros_like(t: &mut Tensor, like: &Tensor) {
    t.resize(like.rows(), like.columns());
    t.clear();
}
