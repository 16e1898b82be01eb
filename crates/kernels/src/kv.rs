//! Paged keys and values: fixed blocks of 16 tokens, handed out by number.
//!
//! ```text
//! keys:   block > kv head > dimension > 16 tokens     (a score is a product with tokens as lanes)
//! values: block > kv head > 16 tokens > dimension     (an output is a product with dimensions as lanes)
//! ```

use crate::gemm::{Element, F16Bits};

/// Tokens in a block.
pub const BLOCK_TOKENS: usize = 16;

/// How keys and values are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvType {
    /// 2 bytes a value; serving.
    F16,
    /// 4 bytes a value; training and parity checks.
    F32,
}

/// One layer's pages.
pub(crate) enum Pages {
    F16 {
        keys: Vec<F16Bits>,
        values: Vec<F16Bits>,
    },
    F32 {
        keys: Vec<f32>,
        values: Vec<f32>,
    },
}

/// The keys and values of all layers, in blocks.
pub struct KvCache {
    pub(crate) layers: Vec<Pages>,
    pub(crate) blocks: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
}

impl KvCache {
    /// Room for `blocks` blocks of 16 tokens in each of `layers` layers. Memory is touched when first written.
    pub fn new(
        layers: usize,
        blocks: usize,
        kv_heads: usize,
        head_dim: usize,
        dtype: KvType,
    ) -> KvCache {
        let n = blocks * BLOCK_TOKENS * kv_heads * head_dim;
        let pages = || match dtype {
            KvType::F16 => Pages::F16 {
                keys: bytemuck::allocation::zeroed_vec(n),
                values: bytemuck::allocation::zeroed_vec(n),
            },
            KvType::F32 => Pages::F32 {
                keys: vec![0.0; n],
                values: vec![0.0; n],
            },
        };
        KvCache {
            layers: (0..layers).map(|_| pages()).collect(),
            blocks,
            kv_heads,
            head_dim,
        }
    }

    /// Number of blocks.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Bytes that a block takes over all layers.
    pub fn block_bytes(layers: usize, kv_heads: usize, head_dim: usize, dtype: KvType) -> usize {
        let value = match dtype {
            KvType::F16 => 2,
            KvType::F32 => 4,
        };
        layers * 2 * BLOCK_TOKENS * kv_heads * head_dim * value
    }
}

/// Writes one token's key and value (kv_heads x head_dim each) into its page.
///
/// # Safety
/// `keys` and `values` point to pages of which `block` is one; no one else touches this token's place.
pub(crate) unsafe fn store<E: Element>(
    keys: *mut E,
    values: *mut E,
    (kv_heads, head_dim): (usize, usize),
    block: usize,
    token: usize,
    key: &[f32],
    value: &[f32],
) {
    assert!(token < BLOCK_TOKENS && key.len() == kv_heads * head_dim && value.len() == key.len());
    for head in 0..kv_heads {
        let page = (block * kv_heads + head) * head_dim * BLOCK_TOKENS;
        for d in 0..head_dim {
            // SAFETY: inside the block's page.
            unsafe {
                *keys.add(page + d * BLOCK_TOKENS + token) = E::from_f32(key[head * head_dim + d]);
                *values.add(page + token * head_dim + d) = E::from_f32(value[head * head_dim + d]);
            }
        }
    }
}
