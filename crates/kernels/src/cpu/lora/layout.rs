//! The layout of an adapter's values in memory.

use crate::cpu::arena::{Arena, Slab};
use crate::cpu::gemm::{Bf16Bits, Element, F16Bits};
use crate::cpu::simd::{LANES, Simd};
use crate::dtype::LoraType;
use crate::error::KernelError;
use bytemuck::Pod;

pub(super) enum Values {
    F32(Slab<f32>),
    F16(Slab<F16Bits>),
    Bf16(Slab<Bf16Bits>),
}

impl Values {
    /// `len` values of which `fill` writes those that are not 0.
    pub(super) fn new(
        arena: &Arena,
        dtype: LoraType,
        len: usize,
        source: &[f32],
        layout: Transposed,
    ) -> Result<Values, KernelError> {
        fn packed<E: Packed>(
            arena: &Arena,
            len: usize,
            source: &[f32],
            layout: Transposed,
        ) -> Result<Slab<E>, KernelError> {
            let mut values = arena.zeros::<E>(len)?;
            layout.fill(source, &mut values);
            Ok(values)
        }
        Ok(match dtype {
            LoraType::F32 => Values::F32(packed(arena, len, source, layout)?),
            LoraType::F16 => Values::F16(packed(arena, len, source, layout)?),
            LoraType::Bf16 => Values::Bf16(packed(arena, len, source, layout)?),
        })
    }

    pub(super) fn pointer(&self, at: usize) -> *const u8 {
        match self {
            Values::F32(v) => v[at..].as_ptr().cast(),
            Values::F16(v) => v[at..].as_ptr().cast(),
            Values::Bf16(v) => v[at..].as_ptr().cast(),
        }
    }

    /// The pairs from word `at` on.
    ///
    /// # Panics
    /// The values are not bf16.
    pub(super) fn words(&self, at: usize) -> *const u32 {
        match self {
            Values::Bf16(v) => v[2 * at..].as_ptr().cast(),
            _ => unreachable!("only bf16 values are stored in pairs"),
        }
    }

    pub(super) fn value_bytes(&self) -> usize {
        match self {
            Values::F32(_) => 4,
            Values::F16(_) | Values::Bf16(_) => 2,
        }
    }

    pub(super) fn bytes(&self) -> usize {
        match self {
            Values::F32(v) => v.len() * 4,
            Values::F16(v) => v.len() * 2,
            Values::Bf16(v) => v.len() * 2,
        }
    }
}

/// A type in which a pack stores its values.
pub(super) trait Packed: Element + Pod {
    /// Whether those of two columns share a word.
    const PAIRED: bool;

    /// 16 lanes of columns 2p and 2p + 1.
    ///
    /// # Safety
    /// `Simd`'s contract; `p` points to the first lane of column 0.
    unsafe fn columns<S: Simd>(from: *const Self, stride: usize, p: usize) -> (S::F, S::F);
}

impl Packed for f32 {
    const PAIRED: bool = false;
    #[inline(always)]
    unsafe fn columns<S: Simd>(from: *const f32, stride: usize, p: usize) -> (S::F, S::F) {
        // SAFETY: passed on; so below.
        unsafe {
            let from = from.add(2 * p * stride);
            (S::load(from), S::load(from.add(stride)))
        }
    }
}

impl Packed for F16Bits {
    const PAIRED: bool = false;
    #[inline(always)]
    unsafe fn columns<S: Simd>(from: *const F16Bits, stride: usize, p: usize) -> (S::F, S::F) {
        // SAFETY: as above.
        unsafe {
            let from = from.add(2 * p * stride).cast();
            (S::load_f16(from), S::load_f16(from.add(stride)))
        }
    }
}

impl Packed for Bf16Bits {
    const PAIRED: bool = true;
    #[inline(always)]
    unsafe fn columns<S: Simd>(from: *const Bf16Bits, stride: usize, p: usize) -> (S::F, S::F) {
        // SAFETY: as above.
        unsafe { S::load_bf16_pairs(from.add(2 * p * stride).cast()) }
    }
}

/// A row-major matrix written column by column, in tiles of `stride` rows: the lanes of a column.
#[derive(Clone, Copy)]
pub(super) struct Transposed {
    columns: usize,
    pub(super) stride: usize,
    /// Values of a tile: its columns, an even number of them.
    pub(super) tile: usize,
}

impl Transposed {
    /// A^T, in one tile.
    pub(super) fn of_a(inputs: usize, rank: usize) -> Transposed {
        let padded = rank.next_multiple_of(LANES);
        Transposed {
            columns: inputs,
            stride: padded,
            tile: inputs.next_multiple_of(2) * padded,
        }
    }

    /// B^T, in tiles of 16 outputs.
    pub(super) fn of_b(rank: usize) -> Transposed {
        Transposed {
            columns: rank,
            stride: LANES,
            tile: rank.next_multiple_of(2) * LANES,
        }
    }

    fn fill<E: Packed>(self, source: &[f32], to: &mut [E]) {
        // Columns that are transposed at once: reads of a row and writes of a column are full vectors.
        const WIDTH: usize = 16;
        let step = if E::PAIRED { 2 } else { 1 };
        let rows: Vec<&[f32]> = source.chunks_exact(self.columns).collect();
        for (rows, to) in rows.chunks(self.stride).zip(to.chunks_exact_mut(self.tile)) {
            for (lanes, rows) in rows.chunks(LANES).enumerate() {
                for first in (0..self.columns).step_by(WIDTH) {
                    let width = WIDTH.min(self.columns - first);
                    let mut block = [[E::default(); WIDTH]; LANES];
                    for (block, row) in block.iter_mut().zip(rows) {
                        for (block, value) in block.iter_mut().zip(&row[first..first + width]) {
                            *block = E::from_f32(*value);
                        }
                    }
                    for column in (0..width).step_by(step) {
                        let at = (first + column) * self.stride + lanes * LANES * step;
                        let to = to[at..at + LANES * step].chunks_exact_mut(step);
                        for (to, block) in to.zip(&block) {
                            to.copy_from_slice(&block[column..column + step]);
                        }
                    }
                }
            }
        }
    }
}

/// Memory for the pairs of one adapter, freed together: all A are adjacent, and all B, in the order in which they are packed, so
/// that reading ahead past the end of one reaches the next.
#[derive(Default)]
pub struct LoraArena {
    pub(super) a: Arena,
    pub(super) b: Arena,
}

impl LoraArena {
    /// Room for pairs of these shapes (outputs, inputs, rank), and not much more.
    ///
    /// # Errors
    /// The system has no memory.
    pub fn for_shapes(
        shapes: impl Iterator<Item = (usize, usize, usize)>,
        dtype: LoraType,
    ) -> Result<LoraArena, KernelError> {
        let bytes = match dtype {
            LoraType::F32 => Arena::bytes_for::<f32>,
            LoraType::F16 | LoraType::Bf16 => Arena::bytes_for::<u16>,
        };
        let (mut a, mut b) = (0, 0);
        for (outputs, inputs, rank) in shapes {
            a += bytes(Transposed::of_a(inputs, rank).tile);
            b += bytes(Transposed::of_b(rank).tile * outputs.div_ceil(LANES));
        }
        Ok(LoraArena {
            a: Arena::with_capacity(a)?,
            b: Arena::with_capacity(b)?,
        })
    }
}
