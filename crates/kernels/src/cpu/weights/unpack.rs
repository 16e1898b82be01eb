//! Tiles back to floats, panel by panel, for the float path: forward panels have outputs as lanes, backward panels inputs.

use super::{Data, GROUP, Layout, TileBytes as _, Weights};
use crate::cpu::gemm::Element;
use crate::cpu::isa::Isa;
use crate::cpu::isa::per_isa;
use crate::cpu::simd::{LANES, prefetch};
use half::f16;

/// How many tiles ahead a group's block is prefetched.
pub(crate) const TILES_AHEAD: usize = 4;

/// 32 inputs x 16 outputs.
pub(crate) type Block = [[f32; LANES]; GROUP];

/// Row `row` of the scales and minima behind a block's integers.
#[inline(always)]
fn read_row(layout: &Layout, block: &[u8], row: usize) -> [f32; LANES] {
    let at = &block[layout.quants() + row * layout.scale_bytes()..];
    let mut to = [0f32; LANES];
    if layout.wide_scales {
        for (to, b) in to.iter_mut().zip(at.as_chunks::<4>().0) {
            *to = f32::from_le_bytes(*b);
        }
    } else {
        for (to, b) in to.iter_mut().zip(at.as_chunks::<2>().0) {
            *to = f16::from_le_bytes(*b).to_f32();
        }
    }
    to
}

/// Scales and minima of a block's first 16 inputs, and of the others.
pub(crate) struct Lines {
    pub(crate) scale: [[f32; LANES]; 2],
    pub(crate) minimum: [[f32; LANES]; 2],
}

impl Lines {
    #[inline(always)]
    fn of(layout: &Layout, block: &[u8]) -> Lines {
        let mut scale = [read_row(layout, block, 0); 2];
        let mut minimum = [[0f32; LANES]; 2];
        if layout.halves {
            scale[1] = read_row(layout, block, 1);
        }
        if layout.minimum {
            minimum =
                [layout.scales(), 2 * layout.scales() - 1].map(|row| read_row(layout, block, row));
        }
        Lines { scale, minimum }
    }
}

per_isa! {
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code))]
    pub(crate) fn read_lines(layout: &Layout, block: &[u8]) -> Lines {
        Lines::of(layout, block)
    }
}

/// Calls `f(input, integers)` for each of a block's 32 inputs, offset taken away.
#[inline(always)]
fn each_input(layout: &Layout, block: &[u8], mut f: impl FnMut(usize, [i32; LANES])) {
    let mask = if layout.bits == 4 { 15 } else { 255 };
    for step in 0..GROUP / 4 {
        let (at, shift) = if layout.bits == 4 {
            (step / 2 * 64, 4 * (step % 2) as u32)
        } else {
            (step * 64, 0)
        };
        let mut words = [0u32; LANES];
        for (w, b) in words.iter_mut().zip(block[at..at + 64].as_chunks::<4>().0) {
            *w = u32::from_le_bytes(*b);
        }
        for byte in 0..4 {
            let q = |word: u32| ((word >> (8 * byte as u32 + shift)) & mask) as i32 - layout.offset;
            f(step * 4 + byte, words.map(q));
        }
    }
}

per_isa! {
    pub(crate) fn unpack_block(layout: &Layout, block: &[u8], out: &mut Block) {
        let Lines { scale, minimum } = Lines::of(layout, block);
        each_input(layout, block, |input, q| {
            let half = input / (GROUP / 2);
            let (scale, minimum, out) = (&scale[half], &minimum[half], &mut out[input]);
            for lane in 0..LANES {
                out[lane] = (q[lane] as f32).mul_add(scale[lane], minimum[lane]);
            }
        });
    }
}

per_isa! {
    /// Pairs of inputs: word [p][lane] holds inputs 2p (low half) and 2p + 1 of an output.
    fn input_pairs(block: &Block, out: &mut [[u32; LANES]; GROUP / 2]) {
        for (out, pair) in out.iter_mut().zip(block.as_chunks::<2>().0) {
            for lane in 0..LANES {
                out[lane] = bf16_bits(pair[0][lane]) | bf16_bits(pair[1][lane]) << 16;
            }
        }
    }
}

per_isa! {
    fn transpose(block: &Block, out: &mut [[f32; GROUP]; LANES]) {
        for (lane, out) in out.iter_mut().enumerate() {
            for (out, row) in out.iter_mut().zip(block) {
                *out = row[lane];
            }
        }
    }
}

per_isa! {
    /// Pairs of outputs: word [p][k] holds outputs 2p (low half) and 2p + 1 of input k.
    fn output_pairs(block: &Block, out: &mut [[u32; GROUP]; LANES / 2]) {
        // Rounded first, so that what is transposed is words.
        let mut words = [[0u32; LANES / 2]; GROUP];
        for (words, row) in words.iter_mut().zip(block) {
            for (word, pair) in words.iter_mut().zip(row.as_chunks::<2>().0) {
                *word = bf16_bits(pair[0]) | bf16_bits(pair[1]) << 16;
            }
        }
        for (pair, out) in out.iter_mut().enumerate() {
            for (out, words) in out.iter_mut().zip(&words) {
                *out = words[pair];
            }
        }
    }
}

per_isa! {
    /// Rows of f32 to bf16, two in a word: low half first; an odd last one is paired with zero.
    pub(crate) fn pair_bf16(x: &[f32], out: &mut [u32]) {
        let (pairs, rest) = x.as_chunks::<2>();
        for (out, pair) in out.iter_mut().zip(pairs) {
            *out = bf16_bits(pair[0]) | bf16_bits(pair[1]) << 16;
        }
        if let [last] = rest {
            out[pairs.len()] = bf16_bits(*last);
        }
    }
}

/// The bits of x as bf16, rounded to nearest even. Finite values only (an infinity stays one, a NaN may become one).
#[inline(always)]
fn bf16_bits(x: f32) -> u32 {
    let bits = x.to_bits();
    (bits.wrapping_add(0x7fff + ((bits >> 16) & 1))) >> 16
}

impl Weights {
    /// Calls `f(group, block)` for each group of 32 inputs of a tile; the last one of a float tile may be short of inputs
    /// (zeros then).
    pub(crate) fn blocks(
        &self,
        isa: Isa,
        tile: usize,
        groups: std::ops::Range<usize>,
        mut f: impl FnMut(usize, &Block),
    ) {
        let mut block = [[0f32; LANES]; GROUP];
        match &self.data {
            Data::Quantized { layout, bytes } => {
                let size = layout.block();
                for g in groups {
                    let at = (tile * self.groups() + g) * size;
                    unpack_block(isa, layout, &bytes[at..at + size], &mut block);
                    f(g, &block);
                }
            }
            Data::F32(v) => self.float_blocks(tile, groups, v, f),
            Data::F16(v) => self.float_blocks(
                tile,
                groups,
                bytemuck::cast_slice::<u16, crate::cpu::gemm::F16Bits>(v),
                f,
            ),
            Data::Bf16(v) => self.float_blocks(
                tile,
                groups,
                bytemuck::cast_slice::<u16, crate::cpu::gemm::Bf16Bits>(v),
                f,
            ),
        }
    }

    fn float_blocks<E: Element>(
        &self,
        tile: usize,
        groups: std::ops::Range<usize>,
        values: &[E],
        mut f: impl FnMut(usize, &Block),
    ) {
        let panel = &values[tile * self.inputs * LANES..][..self.inputs * LANES];
        for g in groups {
            let mut block = [[0f32; LANES]; GROUP];
            for (to, from) in block
                .iter_mut()
                .zip(panel[g * GROUP * LANES..].as_chunks::<LANES>().0)
            {
                *to = from.map(Element::get);
            }
            f(g, &block);
        }
    }

    /// Calls `f` for the block of group `g` of a tile. The next tiles' blocks are too far apart for the hardware's prefetcher, so
    /// one of them is prefetched here.
    pub(crate) fn block_of_group(
        &self,
        isa: Isa,
        tile: usize,
        g: usize,
        mut f: impl FnMut(&Block),
    ) {
        self.prefetch(isa, tile + TILES_AHEAD, g);
        self.blocks(isa, tile, g..g + 1, |_, block| f(block));
    }

    /// Prefetches the block of group `g` of a tile. The tile may be past the last.
    pub(crate) fn prefetch(&self, isa: Isa, tile: usize, g: usize) {
        let (start, bytes) = match &self.data {
            Data::Quantized { layout, bytes } => (bytes.as_ptr(), layout.block()),
            Data::F32(v) => (v.as_ptr().cast(), GROUP * LANES * 4),
            Data::F16(v) | Data::Bf16(v) => (v.as_ptr().cast(), GROUP * LANES * 2),
        };
        let row = bytes / GROUP * self.inputs;
        for line in (0..bytes).step_by(64) {
            prefetch(isa, start.wrapping_add(tile * row + g * bytes + line));
        }
    }

    /// Groups of 32 inputs, the last one perhaps short.
    pub(crate) fn input_blocks(&self) -> usize {
        self.inputs.div_ceil(GROUP)
    }

    /// Writes tile `tile` as `inputs x 16`, rows `out_row` apart.
    pub(crate) fn forward_panel(&self, isa: Isa, tile: usize, out: &mut [f32], out_row: usize) {
        self.blocks(isa, tile, 0..self.input_blocks(), |g, block| {
            for (k, row) in block.iter().enumerate().take(self.inputs - g * GROUP) {
                out[(g * GROUP + k) * out_row..][..LANES].copy_from_slice(row);
            }
        });
    }

    /// The same as bf16 pairs of inputs: 16 rows of words a group, `out_row` apart.
    pub(crate) fn forward_panel_bf16(
        &self,
        isa: Isa,
        tile: usize,
        out: &mut [u32],
        out_row: usize,
    ) {
        let mut pairs = [[0u32; LANES]; GROUP / 2];
        self.blocks(isa, tile, 0..self.input_blocks(), |g, block| {
            input_pairs(isa, block, &mut pairs);
            for (i, row) in pairs.iter().enumerate() {
                out[(g * GROUP / 2 + i) * out_row..][..LANES].copy_from_slice(row);
            }
        });
    }

    /// Writes inputs `32*g..` of tiles `tiles` as `outputs x 32`.
    pub(crate) fn backward_panel(
        &self,
        isa: Isa,
        g: usize,
        tiles: std::ops::Range<usize>,
        out: &mut [f32],
    ) {
        let (rows, _) = out.as_chunks_mut::<GROUP>();
        for (t, out) in tiles.zip(rows.as_chunks_mut::<LANES>().0) {
            self.block_of_group(isa, t, g, |block| transpose(isa, block, out));
        }
    }

    /// The same as bf16 pairs of outputs: `outputs / 2 x 32` words.
    pub(crate) fn backward_panel_bf16(
        &self,
        isa: Isa,
        g: usize,
        tiles: std::ops::Range<usize>,
        out: &mut [u32],
    ) {
        let (rows, _) = out.as_chunks_mut::<GROUP>();
        for (t, out) in tiles.zip(rows.as_chunks_mut::<{ LANES / 2 }>().0) {
            self.block_of_group(isa, t, g, |block| output_pairs(isa, block, out));
        }
    }
}
