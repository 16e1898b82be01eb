// Conversions and functions that every shader shares. Sums of products are written as fma, so that two kernels that must give
// the same bits round alike.

// The low 16 bits of `h` as f16. Subnormals too: the hardware's conversion may flush them.
fn half_to_float(h: u32) -> f32 {
    let magnitude = h & 0x7fffu;
    let normal = (magnitude << 13u) + select(0x38000000u, 0x70000000u, magnitude >= 0x7c00u);
    let subnormal = bitcast<u32>(f32(magnitude) * 5.9604644775390625e-8);
    return bitcast<f32>(((h & 0x8000u) << 16u) | select(subnormal, normal, magnitude >= 0x400u));
}

fn half_pair(word: u32) -> vec2<f32> {
    return vec2<f32>(half_to_float(word), half_to_float(word >> 16u));
}

fn bf16_pair(word: u32) -> vec2<f32> {
    return vec2<f32>(bitcast<f32>(word << 16u), bitcast<f32>(word & 0xffff0000u));
}

// Rounded to nearest even, as the CPU rounds.
fn float_to_half(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    let sign = (bits >> 16u) & 0x8000u;
    let magnitude = bits & 0x7fffffffu;
    if magnitude >= 0x47800000u {
        return sign | select(0x7c00u, 0x7e00u, magnitude > 0x7f800000u);
    }
    if magnitude < 0x38800000u {
        return sign | u32(round(abs(x) * 16777216.0));
    }
    let rounded = magnitude + 0xfffu + ((magnitude >> 13u) & 1u);
    return sign | ((rounded - 0x38000000u) >> 13u);
}

// e^x, within 2e-7: the hardware's differs from driver to driver.
fn exponential(x: f32) -> f32 {
    let y = clamp(x, -87.0, 88.0);
    let n = round(y * 1.44269504);
    // ln 2 in two parts: the first product and difference are exact. The clamp changes nothing, but without it Mesa adds the parts
    // up first.
    let high = clamp(fma(n, -0.693145752, y), -0.5, 0.5);
    let r = fma(n, -1.42860677e-6, high);
    var p = 1.98412698e-4;
    p = fma(p, r, 1.38888889e-3);
    p = fma(p, r, 8.33333333e-3);
    p = fma(p, r, 4.16666667e-2);
    p = fma(p, r, 1.66666667e-1);
    p = fma(p, r, 0.5);
    p = fma(p, r, 1.0);
    p = fma(p, r, 1.0);
    return p * bitcast<f32>(u32(i32(n) + 127) << 23u);
}
