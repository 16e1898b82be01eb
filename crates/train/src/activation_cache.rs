//! The activation cache: activations of the forward pass that the backward pass reuses, so that it does not recompute those
//! layers.
//!
//! Recomputing all layers is a third of a step. The cache stores the outputs of the products and of attention in f32; norms
//! and SwiGLU are recomputed, which costs little. A cached layer and a recomputed one give the same bits, so the size of
//! the cache changes only memory and time.

use formats::config::ModelConfig;
use kernels::{Device, Tensor};
use model::Activations;

/// One layer's activations.
struct CachedLayer {
    /// Queries and keys before the head norms, if the model has them.
    plain_q: Tensor,
    plain_k: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attention: Tensor,
    middle: Tensor,
    gate: Tensor,
    up: Tensor,
    /// The largest number of rows it has stored.
    room: usize,
}

impl CachedLayer {
    fn new(device: &Device) -> CachedLayer {
        CachedLayer {
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

/// Cached activations of the last layers, as many as fit.
pub(crate) struct ActivationCache {
    /// Maximum size in bytes.
    limit: u64,
    /// By layer, counted from the last one.
    layers: Vec<CachedLayer>,
}

/// Bytes per row and layer.
pub(crate) fn bytes_per_row(config: &ModelConfig) -> u64 {
    let (query, key) = (
        config.heads * config.head_dim,
        config.kv_heads * config.head_dim,
    );
    bytes_per_row_of(
        query,
        key,
        config.hidden_size,
        config.intermediate_size,
        config.qk_norm,
    )
}

/// Bytes per row and layer, from the widths of queries, keys, the residual stream and the feed-forward part.
pub(crate) fn bytes_per_row_of(
    query: usize,
    key: usize,
    hidden: usize,
    intermediate: usize,
    qk_norm: bool,
) -> u64 {
    let plain = if qk_norm { query + key } else { 0 };
    4 * (2 * query + 2 * key + plain + hidden + 2 * intermediate) as u64
}

/// The number of the last `layers` that fit for a call of `rows` rows.
pub(crate) fn cached_layers(limit: u64, row_bytes: u64, rows: usize, layers: usize) -> usize {
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

    /// Makes room for a forward pass of `rows` rows. Returns the first layer that will be cached.
    pub(crate) fn reserve(&mut self, device: &Device, config: &ModelConfig, rows: usize) -> usize {
        let row = bytes_per_row(config);
        let count = cached_layers(self.limit, row, rows, config.layers);
        self.layers.truncate(count);
        self.layers.resize_with(count, || CachedLayer::new(device));
        // Memory of earlier, longer calls is freed if the total would exceed the limit.
        let room = |layer: &CachedLayer| layer.room.max(rows) as u64 * row;
        if self.layers.iter().map(room).sum::<u64>() > self.limit {
            self.layers.clear();
            self.layers.resize_with(count, || CachedLayer::new(device));
        }
        for layer in &mut self.layers {
            layer.room = layer.room.max(rows);
        }
        config.layers - count
    }

    /// Moves a layer's activations from the forward buffers into the cache, or back for the backward pass. Returns false if
    /// the layer is not cached.
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
