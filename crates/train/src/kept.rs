//! Activations that the forward leaves for the backward, so that it needs not run those layers again.
//!
//! Running a layer again is a third of a step. What is kept are the outputs of the products and of attention, as they are
//! (f32); norms and SwiGLU are computed again, which costs next to nothing. A layer that is kept and one that runs again
//! give the same bits, so how much is kept is a matter of memory alone.

use formats::config::ModelConfig;
use kernels::{Device, Tensor};
use model::Activations;

/// One layer's activations.
struct Layer {
    /// In front of the norms of heads, where there are any.
    plain_q: Tensor,
    plain_k: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attention: Tensor,
    middle: Tensor,
    gate: Tensor,
    up: Tensor,
    /// The most rows that it has had room for.
    room: usize,
}

impl Layer {
    fn new(device: &Device) -> Layer {
        Layer {
            plain_q: device.tensor(),
            plain_k: device.tensor(),
            q: device.tensor(),
            k: device.tensor(),
            v: device.tensor(),
            attention: device.tensor(),
            middle: device.tensor(),
            gate: device.tensor(),
            up: device.tensor(),
            room: 0,
        }
    }
}

/// Activations of the last layers, as many as there is room for.
pub(crate) struct ActivationCache {
    /// Bytes that may be kept.
    limit: u64,
    /// By layer, counted from the last one.
    layers: Vec<Layer>,
}

/// Bytes that a row of a layer takes.
pub(crate) fn row_bytes(config: &ModelConfig) -> u64 {
    let (query, key) = (
        config.heads * config.head_dim,
        config.kv_heads * config.head_dim,
    );
    bytes_of(
        query,
        key,
        config.hidden_size,
        config.intermediate_size,
        config.qk_norm,
    )
}

/// The same from widths: queries, keys, the residual stream, the feed-forward part; and whether heads are normed.
pub(crate) fn bytes_of(
    query: usize,
    key: usize,
    hidden: usize,
    intermediate: usize,
    qk_norm: bool,
) -> u64 {
    let plain = if qk_norm { query + key } else { 0 };
    4 * (2 * query + 2 * key + plain + hidden + 2 * intermediate) as u64
}

/// How many of `layers` are kept of a call of `rows` rows.
pub(crate) fn layers_kept(limit: u64, row_bytes: u64, rows: usize, layers: usize) -> usize {
    let fit = limit / (row_bytes * rows as u64).max(1);
    usize::try_from(fit).unwrap_or(usize::MAX).min(layers)
}

impl ActivationCache {
    pub(crate) fn new(limit: u64) -> Self {
        Self {
            limit,
            layers: Vec::new(),
        }
    }

    /// Makes room for a forward of `rows` rows: returns the first layer that will be kept.
    pub(crate) fn begin(&mut self, device: &Device, config: &ModelConfig, rows: usize) -> usize {
        let row = row_bytes(config);
        let count = layers_kept(self.limit, row, rows, config.layers);
        self.layers.truncate(count);
        self.layers.resize_with(count, || Layer::new(device));
        // Room of earlier, longer calls is given back where it would be too much in all.
        let room = |layer: &Layer| layer.room.max(rows) as u64 * row;
        if self.layers.iter().map(room).sum::<u64>() > self.limit {
            self.layers.clear();
            self.layers.resize_with(count, || Layer::new(device));
        }
        for layer in &mut self.layers {
            layer.room = layer.room.max(rows);
        }
        config.layers - count
    }

    /// Takes a layer's activations out of the buffers of its forward, or puts them back there for its backward. False where
    /// the layer is not kept.
    pub(crate) fn swap(&mut self, from_last: usize, b: &mut Activations) -> bool {
        let Some(layer) = self.layers.get_mut(from_last) else {
            return false;
        };
        for (kept, buffer) in [
            (&mut layer.plain_q, &mut b.plain_q),
            (&mut layer.plain_k, &mut b.plain_k),
            (&mut layer.q, &mut b.q),
            (&mut layer.k, &mut b.k),
            (&mut layer.v, &mut b.v),
            (&mut layer.attention, &mut b.attention),
            (&mut layer.middle, &mut b.middle),
            (&mut layer.gate, &mut b.gate),
            (&mut layer.up, &mut b.up),
        ] {
            std::mem::swap(kept, buffer);
        }
        true
    }
}
