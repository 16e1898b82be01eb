//! RMS normalisation: y = x / sqrt(mean(x^2) + eps) * w (Zhang and Sennrich, 2019).

use crate::cpu::isa::per_isa;
use crate::cpu::simd::LANES;

/// An RMS norm: a factor for each column, and what is added to the mean square.
#[derive(Clone, Copy)]
pub(crate) struct Norm<'a> {
    pub(crate) weight: &'a [f32],
    pub(crate) eps: f32,
}

per_isa! {
    /// One row. The sum of squares runs in 16 interleaved chains, added up in order.
    pub(crate) fn rmsnorm_row(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        let mut lanes = [0f32; LANES];
        let (chunks, rest) = x.as_chunks::<LANES>();
        for chunk in chunks {
            for (sum, v) in lanes.iter_mut().zip(chunk) {
                *sum = v.mul_add(*v, *sum);
            }
        }
        let mut total = 0f32;
        for sum in lanes {
            total += sum;
        }
        for v in rest {
            total = v.mul_add(*v, total);
        }
        let scale = 1.0 / (total / x.len() as f32 + eps).sqrt();
        for ((out, v), w) in out.iter_mut().zip(x).zip(weight) {
            *out = v * scale * w;
        }
    }
}
