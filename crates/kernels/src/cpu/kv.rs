//! Paged keys and values: fixed blocks of 16 tokens, handed out by number.
//!
//! ```text
//! block > layer > keys:   kv head > dimension > 16 tokens     (a score is a product with tokens as lanes)
//!                 values: kv head > 16 tokens > dimension     (an output is a product with dimensions as lanes)
//! ```
//!
//! Layers are inside blocks, so that a cache with few blocks in use touches little memory, even with huge pages.

use crate::cpu::arena::{Arena, Slab};
use crate::cpu::gemm::{Element, F16Bits};
use crate::dtype::{KvShape, KvType};
use crate::error::KernelError;
use crate::rows::BLOCK_TOKENS;

/// All pages.
pub(crate) enum Pages {
    F16(Slab<F16Bits>),
    F32(Slab<f32>),
}

/// The keys and values of all layers, in blocks.
pub struct KvCache {
    pub(crate) pages: Pages,
    pub(crate) shape: PageShape,
    pub(crate) layers: usize,
    pub(crate) blocks: usize,
}

/// Offsets into the pages, in values.
#[derive(Clone, Copy)]
pub(crate) struct PageShape {
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    layers: usize,
}

impl PageShape {
    /// Keys, or values, of one block in one layer.
    fn page(self) -> usize {
        BLOCK_TOKENS * self.kv_heads * self.head_dim
    }
    /// From one block to the next.
    pub(crate) fn block(self) -> usize {
        self.layers * 2 * self.page()
    }
    /// The keys of a layer and head in block 0.
    pub(crate) fn keys(self, layer: usize, head: usize) -> usize {
        layer * 2 * self.page() + head * BLOCK_TOKENS * self.head_dim
    }
    /// The values of a layer and head in block 0.
    pub(crate) fn values(self, layer: usize, head: usize) -> usize {
        self.keys(layer, head) + self.page()
    }
}

impl KvCache {
    /// Room for `blocks` blocks of 16 tokens in each of `layers` layers. Memory is touched when first written.
    ///
    /// # Errors
    /// The system has no memory.
    pub fn new(
        KvShape {
            layers,
            kv_heads,
            head_dim,
        }: KvShape,
        blocks: usize,
        dtype: KvType,
    ) -> Result<KvCache, KernelError> {
        let shape = PageShape {
            kv_heads,
            head_dim,
            layers,
        };
        let values = blocks.saturating_mul(shape.block());
        let arena = Arena::default();
        let pages = match dtype {
            KvType::F16 => Pages::F16(arena.zeros(values)?),
            KvType::F32 => Pages::F32(arena.zeros(values)?),
        };
        Ok(KvCache {
            pages,
            shape,
            layers,
            blocks,
        })
    }
}

/// Writes one token's key and value (kv_heads x head_dim each) into its block.
///
/// # Safety
/// `pages` points to pages of `shape` of which `block` is one; no one else touches this token's place.
pub(crate) unsafe fn store<E: Element>(
    pages: *mut E,
    shape: PageShape,
    layer: usize,
    block: usize,
    token: usize,
    key: &[f32],
    value: &[f32],
) {
    let dim = shape.head_dim;
    assert!(layer < shape.layers && token < BLOCK_TOKENS);
    assert!(key.len() == shape.kv_heads * dim && value.len() == key.len());
    for (head, (key, value)) in key
        .chunks_exact(dim)
        .zip(value.chunks_exact(dim))
        .enumerate()
    {
        // SAFETY: inside the block.
        unsafe {
            let keys = pages.add(block * shape.block() + shape.keys(layer, head));
            let values = pages.add(block * shape.block() + shape.values(layer, head));
            for d in 0..dim {
                *keys.add(d * BLOCK_TOKENS + token) = E::from_f32(key[d]);
                *values.add(token * dim + d) = E::from_f32(value[d]);
            }
        }
    }
}
