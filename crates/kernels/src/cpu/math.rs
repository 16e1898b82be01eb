//! Elementary functions and sums that vectorise: branch-free, and the same bits on every instruction set.
//!
//! All are `#[inline(always)]`, because a call out of a body compiled for AVX-512 would lose its instruction set.

/// How many partial sums a reduction keeps: one 512-bit register, or two of 256 bits.
pub(crate) const LANES: usize = 16;

/// `e^x`, with a relative error below 1.2e-7 where the result is a normal number (`x >= -87.33`).
///
/// Below that the result is subnormal, correctly scaled; from -104 down it is 0, from 88.73 up infinity, and NaN
/// stays NaN. `exp(0)` is exactly 1.
///
/// `x = n ln2 + r` with `|r| <= ln2 / 2`; `e^r` is a polynomial of degree 6, minimax in the relative error (4e-9).
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // 1.5 * 2^23: adding it leaves the nearest integer in the low bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    const LN2_LOW: f32 = -1.904_654_2e-9;
    // Comparisons rather than `min` and `max`, which would turn NaN into a number.
    let x = if x > 89.0 { 89.0 } else { x };
    let x = if x < -104.0 { -104.0 } else { x };
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-std::f32::consts::LN_2, x);
    let r = n.mul_add(-LN2_LOW, r);
    let p = 0.001_381_454_f32;
    let p = p.mul_add(r, 0.008_368_745);
    let p = p.mul_add(r, 0.041_668_39);
    let p = p.mul_add(r, 0.166_665_21);
    let p = p.mul_add(r, 0.499_999_94);
    let p = p.mul_add(r, 1.0);
    let p = p.mul_add(r, 1.0);
    // 2^n in two factors, as n reaches from -150 to 128 and one exponent field does not.
    let n = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let half = n >> 1;
    p * power_of_two(half) * power_of_two(n.wrapping_sub(half))
}

#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) << 23) as u32)
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `x * sigmoid(x)`; 0 where `x` is very negative.
#[inline(always)]
pub(crate) fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// The sum of the lanes, in pairs: (0+8), (1+9), ..., then (0+4), and so on.
#[inline(always)]
pub(crate) fn sum_lanes(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for j in 0..width {
            lanes[j] += lanes[j + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// The larger of two; a NaN in `x` is passed over, as what follows a maximum brings it back.
#[inline(always)]
pub(crate) fn larger(x: f32, best: f32) -> f32 {
    if x > best { x } else { best }
}

/// The dot product of two slices of one length.
#[inline(always)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let (a, a_tail) = a.as_chunks::<LANES>();
    let (b, b_tail) = b.as_chunks::<LANES>();
    let mut lanes = [0f32; LANES];
    for (a, b) in a.iter().zip(b) {
        for j in 0..LANES {
            lanes[j] = a[j].mul_add(b[j], lanes[j]);
        }
    }
    for ((lane, a), b) in lanes.iter_mut().zip(a_tail).zip(b_tail) {
        *lane = a.mul_add(*b, *lane);
    }
    sum_lanes(lanes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::check::{assert_same_bits, isas};
    use crate::cpu::isa::per_isa;

    per_isa! {
        fn exp_all(x: &[f32], y: &mut [f32]) {
            for (y, x) in y.iter_mut().zip(x) {
                *y = exp(*x);
            }
        }
    }

    /// Every 61st float of the range where the result is normal.
    fn many() -> Vec<f32> {
        let positive = (0..=88.0f32.to_bits()).step_by(61).map(f32::from_bits);
        let negative = (0..=87.0f32.to_bits())
            .step_by(61)
            .map(|bits| -f32::from_bits(bits));
        positive.chain(negative).collect()
    }

    #[test]
    fn exp_is_within_its_error_on_every_isa() {
        let x = many();
        let mut expected = vec![0.0; x.len()];
        exp_all(Isa::Scalar, &x, &mut expected);
        let worst = x
            .iter()
            .zip(&expected)
            .map(|(x, y)| (f64::from(*y) / f64::from(*x).exp() - 1.0).abs())
            .fold(0.0, f64::max);
        assert!(worst < 1.2e-7, "{worst:e}");
        for isa in isas() {
            let mut y = vec![0.0; x.len()];
            exp_all(isa, &x, &mut y);
            assert_same_bits(isa, &y, &expected);
        }
    }

    #[test]
    fn exp_at_the_edges() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-0.0), 1.0);
        assert_eq!(exp(-104.0), 0.0);
        assert_eq!(exp(-1e30), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(88.8), f32::INFINITY);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(88.72).is_finite());
        // Subnormal results: within one unit of the last place that they have.
        for i in 0..1600 {
            let x = -87.5 - 0.01 * i as f32;
            let error = (f64::from(exp(x)) - f64::from(x).exp()).abs();
            assert!(error <= 1.5e-45, "{x}: {error:e}");
        }
    }

    #[test]
    fn silu_and_sigmoid_follow_their_definitions() {
        for i in -4000..4000 {
            let x = i as f32 * 0.03;
            let s = 1.0 / (1.0 + f64::from(-x).exp());
            assert!((f64::from(sigmoid(x)) - s).abs() <= 2e-7 * s + 1e-38, "{x}");
            let y = f64::from(x) * s;
            assert!(
                (f64::from(silu(x)) - y).abs() <= 3e-7 * y.abs() + 1e-36,
                "{x}"
            );
        }
    }

    #[test]
    fn dot_takes_every_length() {
        for n in 0..70 {
            let a: Vec<f32> = (0..n).map(|i| i as f32).collect();
            let b: Vec<f32> = (0..n).map(|i| (i % 3) as f32).collect();
            let expected: f32 = a.iter().zip(&b).map(|(a, b)| a * b).sum();
            assert_eq!(dot(&a, &b), expected);
        }
    }

    use crate::cpu::isa::Isa;
}
