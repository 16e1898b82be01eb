//! The paged cache on the card, and attention over it.

use crate::device::GpuDevice;
use crate::executor::{Buffer, Kernel, Launch};
use crate::kernels::{ATTENTION_COMBINE, ATTENTION_SPLIT, ATTENTION_WALK, ROPE_STORE};
use crate::rows::Norm;
use crate::step::Step;
use crate::tensor::{Growing, Tensor};
use kernels_common::dtype::{KvShape, KvType};
use kernels_common::error::KernelError;
use kernels_common::rope;
use std::sync::Mutex;
use std::sync::PoisonError;

/// Tokens of a split. Part of the result: another number gives other bits.
const SPLIT: usize = 128;
/// From so many workgroups on, a card is busy without splits.
const ENOUGH_GROUPS: usize = 1024;
/// The most values of a head that `attention.wgsl` has room for.
const MOST_HEAD_DIM: usize = 256;

/// The keys and values of all layers: a buffer for each layer, because a binding is limited.
pub struct KvCache {
    layers: Vec<Buffer>,
    shape: KvShape,
    /// Number of blocks.
    pub blocks: usize,
    dtype: KvType,
    /// What `split` writes and `combine` reads.
    parts: Mutex<Growing>,
}

impl KvCache {
    fn constants(&self) -> [(&'static str, u32); 1] {
        [("F32_CACHE", u32::from(self.dtype == KvType::F32))]
    }
}

/// cos and sin of each position and pair.
pub struct RopeTable {
    buffer: Buffer,
    positions: usize,
    head_dim: usize,
}

/// The norms of the heads of queries and keys, in front of the rotation.
#[derive(Clone, Copy)]
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

impl GpuDevice {
    /// At most as many blocks as a buffer holds of one layer.
    ///
    /// # Errors
    /// The card has no memory, or the heads have a size that its kernels do not take.
    pub fn kv_cache(
        &self,
        shape: KvShape,
        blocks: usize,
        dtype: KvType,
    ) -> Result<KvCache, KernelError> {
        let dim = shape.head_dim;
        if !dim.is_multiple_of(4) || dim == 0 || dim > MOST_HEAD_DIM {
            return Err(KernelError::Shape {
                what: format!(
                    "heads of {dim} values; a graphics card takes multiples of 4 up to {MOST_HEAD_DIM}"
                ),
            });
        }
        let one = KvShape { layers: 1, ..shape };
        let block = one.block_bytes(dtype) as u64;
        let most = usize::try_from(self.executor().largest_buffer() / block).unwrap_or(usize::MAX);
        let blocks = blocks.min(most);
        let bytes = block * blocks as u64;
        let layers = (0..shape.layers).map(|_| self.executor().buffer(bytes));
        Ok(KvCache {
            layers: layers.collect::<Result<_, _>>()?,
            shape,
            blocks,
            dtype,
            parts: Mutex::new(Growing::new(self.executor())),
        })
    }

    /// The rotary angles of `positions` positions.
    ///
    /// # Panics
    /// The card has no memory.
    pub fn rope_table(
        &self,
        head_dim: usize,
        positions: usize,
        theta: f32,
        factors: Option<&[f32]>,
    ) -> RopeTable {
        let angles = rope::angles(head_dim, positions, theta, factors);
        let words: Vec<u32> = angles
            .flat_map(|angle| [angle.cos(), angle.sin()].map(|x| (x as f32).to_bits()))
            .collect();
        let bytes = 4 * words.len() as u64;
        let buffer = self
            .executor()
            .buffer(bytes)
            .unwrap_or_else(|e| panic!("{e}"));
        self.executor().write_unused(&buffer, 0, &words);
        RopeTable {
            buffer,
            positions,
            head_dim,
        }
    }

    /// Rotates queries and keys by their positions, in place, and writes keys and values into a layer of the cache. With
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
        let KvShape {
            kv_heads, head_dim, ..
        } = cache.shape;
        if let Some(norms) = norms {
            assert_eq!(norms.q_norm.weight.length, head_dim);
            assert_eq!(norms.k_norm.weight.length, head_dim);
            q.resize(norms.plain_q.rows(), norms.plain_q.columns());
            k.resize(norms.plain_k.rows(), norms.plain_k.columns());
        }
        let heads = q.columns() / head_dim;
        assert_eq!((q.rows(), q.columns()), (step.rows, heads * head_dim));
        assert_eq!((k.rows(), k.columns()), (step.rows, kv_heads * head_dim));
        assert_eq!((v.rows(), v.columns()), (step.rows, kv_heads * head_dim));
        assert_eq!(table.head_dim, head_dim);
        assert!(step.positions <= table.positions && step.blocks <= cache.blocks);
        let [f32_cache] = cache.constants();
        let unread = [self.unread(); 4];
        let [plain_q, plain_k, q_norm, k_norm] = norms.map_or(unread, |norms| {
            [
                norms.plain_q.buffer(),
                norms.plain_k.buffer(),
                &norms.q_norm.weight.buffer,
                &norms.k_norm.weight.buffer,
            ]
        });
        let [q_eps, k_eps] = norms.map_or([0; 2], |norms| {
            [norms.q_norm, norms.k_norm].map(|norm| norm.eps.to_bits())
        });
        let [heads_, kv_heads_, head_dim_] = [heads, kv_heads, head_dim].map(|n| n as u32);
        self.executor().launch(&Launch {
            kernel: &ROPE_STORE,
            constants: &[f32_cache, ("NORMS", u32::from(norms.is_some()))],
            buffers: &[
                v.buffer(),
                &table.buffer,
                &step.buffer,
                plain_q,
                plain_k,
                q_norm,
                k_norm,
                q.buffer(),
                k.buffer(),
                &cache.layers[layer],
            ],
            parameters: &[heads_, kv_heads_, head_dim_, q_eps, k_eps],
            groups: [
                ((heads + kv_heads) * head_dim / 4).div_ceil(64),
                step.rows,
                1,
            ],
        });
    }

    /// Attention of rotated queries over the cache.
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
        let KvShape {
            kv_heads, head_dim, ..
        } = cache.shape;
        let heads = q.columns() / head_dim;
        assert_eq!((q.rows(), q.columns()), (step.rows, heads * head_dim));
        assert!(heads.is_multiple_of(kv_heads) && step.blocks <= cache.blocks);
        out.resize(step.rows, heads * head_dim);
        let splits = step.longest.div_ceil(SPLIT);
        let launch = |kernel: &Kernel, parts: &Buffer, splits: usize| {
            let scale = 1.0 / (head_dim as f32).sqrt();
            let [heads, kv_heads, head_dim] = [heads, kv_heads, head_dim].map(|n| n as u32);
            self.executor().launch(&Launch {
                kernel,
                constants: &cache.constants(),
                buffers: &[
                    q.buffer(),
                    &cache.layers[layer],
                    &step.buffer,
                    parts,
                    out.buffer(),
                ],
                parameters: &[
                    heads,
                    kv_heads,
                    head_dim,
                    step.longest.div_ceil(SPLIT) as u32,
                    scale.to_bits(),
                ],
                groups: [heads as usize, step.rows, splits],
            });
        };
        if splits <= 1 || heads * step.rows >= ENOUGH_GROUPS {
            launch(&ATTENTION_WALK, self.unwritten(0), 1);
            return;
        }
        let mut parts = cache.parts.lock().unwrap_or_else(PoisonError::into_inner);
        let parts = parts.with_room(step.rows * heads * splits * (head_dim + 2));
        launch(&ATTENTION_SPLIT, parts, splits);
        launch(&ATTENTION_COMBINE, parts, 1);
    }
}
