//! Adapters on the card: both matrices of a pair are in the heap, and tables tell launches where.
//!
//! ```text
//! A: rank > pair of inputs      B: pair of ranks > output      (a pair is 2 words in f32, and one in f16 and bf16)
//! ```

use crate::device::GpuDevice;
use crate::heap::Region;
use half::{bf16, f16};
use kernels_common::dtype::LoraType;
use kernels_common::error::KernelError;
use std::sync::{Arc, Mutex, PoisonError};

/// The region of one adapter, of which its pairs take parts one after the other.
pub struct LoraArena {
    region: Arc<Region>,
    next: Mutex<u64>,
}

/// One adapter's pair of matrices for one linear layer.
pub struct LoraPack {
    /// Keeps the region.
    _region: Arc<Region>,
    pub(crate) a: u64,
    pub(crate) b: u64,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    pub(crate) rank: usize,
    pub(crate) scale: f32,
    pub(crate) dtype: LoraType,
    words: u64,
}

impl LoraPack {
    /// Bytes of the card's memory.
    pub fn bytes(&self) -> usize {
        4 * self.words as usize
    }

    /// As `pack_of` in adapters.wgsl reads it.
    pub(crate) fn table_entry(&self) -> [u32; 4] {
        let dtype = match self.dtype {
            LoraType::F32 => 0,
            LoraType::F16 => 1,
            LoraType::Bf16 => 2,
        };
        let rank = self.rank as u32 | dtype << 16;
        [self.a as u32, self.b as u32, rank, self.scale.to_bits()]
    }
}

/// The largest rank that a table entry can name.
const MOST_RANK: usize = 1 << 15;

fn words((outputs, inputs, rank): (usize, usize, usize), dtype: LoraType) -> [u64; 2] {
    let pair = if dtype == LoraType::F32 { 2 } else { 1 };
    [rank * inputs.div_ceil(2), rank.div_ceil(2) * outputs].map(|pairs| (pairs * pair) as u64)
}

fn push_pair(to: &mut Vec<u32>, dtype: LoraType, [low, high]: [f32; 2]) {
    let half = |low: u16, high: u16| u32::from(low) | u32::from(high) << 16;
    match dtype {
        LoraType::F32 => to.extend([low.to_bits(), high.to_bits()]),
        LoraType::F16 => to.push(half(
            f16::from_f32(low).to_bits(),
            f16::from_f32(high).to_bits(),
        )),
        LoraType::Bf16 => to.push(half(
            bf16::from_f32(low).to_bits(),
            bf16::from_f32(high).to_bits(),
        )),
    }
}

impl GpuDevice {
    /// Room for pairs of these shapes (outputs, inputs, rank).
    ///
    /// # Errors
    /// The card has no memory, or its buffer of adapters cannot be so large.
    pub fn lora_arena(
        &self,
        shapes: impl Iterator<Item = (usize, usize, usize)>,
        dtype: LoraType,
    ) -> Result<LoraArena, KernelError> {
        let total = shapes.flat_map(|shape| words(shape, dtype)).sum();
        let region = Arc::new(self.heap().allocate(total)?);
        Ok(LoraArena {
            next: Mutex::new(region.words().start),
            region,
        })
    }

    /// Packs `a` (rank x inputs) and `b` (outputs x rank), both row-major; `scale` multiplies their product.
    ///
    /// # Errors
    /// The lengths do not fit the shape, or the arena is full.
    pub fn lora_pack(
        &self,
        arena: &LoraArena,
        a: &[f32],
        b: &[f32],
        shape: (usize, usize, usize),
        scale: f32,
        dtype: LoraType,
    ) -> Result<LoraPack, KernelError> {
        let (outputs, inputs, rank) = shape;
        let [a_words, b_words] = words(shape, dtype);
        let mut next = arena.next.lock().unwrap_or_else(PoisonError::into_inner);
        let at = *next;
        if rank == 0
            || rank > MOST_RANK
            || rank.checked_mul(inputs) != Some(a.len())
            || rank.checked_mul(outputs) != Some(b.len())
            || at + a_words + b_words > arena.region.words().end
        {
            return Err(KernelError::Shape {
                what: format!(
                    "LoRA of rank {rank} on {outputs} x {inputs} with {} and {} values",
                    a.len(),
                    b.len()
                ),
            });
        }
        *next = at + a_words + b_words;
        let mut packed = Vec::with_capacity((a_words + b_words) as usize);
        for row in a.chunks_exact(inputs) {
            for pair in row.chunks(2) {
                push_pair(
                    &mut packed,
                    dtype,
                    [pair[0], pair.get(1).copied().unwrap_or(0.0)],
                );
            }
        }
        for k in (0..rank).step_by(2) {
            for row in b.chunks_exact(rank) {
                push_pair(
                    &mut packed,
                    dtype,
                    [row[k], row.get(k + 1).copied().unwrap_or(0.0)],
                );
            }
        }
        arena.region.write(at, &packed);
        Ok(LoraPack {
            _region: arena.region.clone(),
            a: at,
            b: at + a_words,
            inputs,
            outputs,
            rank,
            scale,
            dtype,
            words: a_words + b_words,
        })
    }
}
