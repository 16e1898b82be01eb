// Rotates queries and keys by their positions, in place, and writes keys and values into a layer of the cache. With NORMS,
// queries and keys are the norms of the heads of `plain_q` and `plain_k`.
//
// A layer of the cache: block > keys:   head > dimension > 16 tokens   (threads of a score are tokens)
//                               values: head > 16 tokens > dimension   (threads of an output are dimensions)
// In f16, dimensions 2j and 2j + 1 share a word.

override F32_CACHE: u32;
override NORMS: u32;

struct Parameters {
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    q_eps: f32,
    k_eps: f32,
}
var<immediate> p: Parameters;

@group(0) @binding(0) var<storage, read> v: array<f32>;
@group(0) @binding(1) var<storage, read> angles: array<vec2<f32>>;  // position > pair: cos, sin
@group(0) @binding(2) var<storage, read> metadata: array<u32>;
@group(0) @binding(3) var<storage, read> plain_q: array<f32>;
@group(0) @binding(4) var<storage, read> plain_k: array<f32>;
@group(0) @binding(5) var<storage, read> q_norm: array<f32>;
@group(0) @binding(6) var<storage, read> k_norm: array<f32>;
@group(0) @binding(7) var<storage, read_write> q: array<f32>;
@group(0) @binding(8) var<storage, read_write> k: array<f32>;
@group(0) @binding(9) var<storage, read_write> cache: array<u32>;

// The factor of a head's norm. Each thread of a head computes it, which costs less than a launch for the norms.
fn factor(squares: f32, eps: f32) -> f32 {
    return inverseSqrt(squares / f32(p.head_dim) + eps);
}

// Dimensions i and i + 1 of the head that begins at `head`.
fn query(head: u32, i: u32, factor: f32) -> vec2<f32> {
    if NORMS != 0u {
        return vec2<f32>(plain_q[head + i], plain_q[head + i + 1u]) * factor * vec2<f32>(q_norm[i], q_norm[i + 1u]);
    }
    return vec2<f32>(q[head + i], q[head + i + 1u]);
}

fn key(head: u32, i: u32, factor: f32) -> vec2<f32> {
    if NORMS != 0u {
        return vec2<f32>(plain_k[head + i], plain_k[head + i + 1u]) * factor * vec2<f32>(k_norm[i], k_norm[i + 1u]);
    }
    return vec2<f32>(k[head + i], k[head + i + 1u]);
}

fn query_factor(head: u32) -> f32 {
    var squares = 0.0;
    for (var d = 0u; d < select(0u, p.head_dim, NORMS != 0u); d++) {
        squares = fma(plain_q[head + d], plain_q[head + d], squares);
    }
    return factor(squares, p.q_eps);
}

fn key_factor(head: u32) -> f32 {
    var squares = 0.0;
    for (var d = 0u; d < select(0u, p.head_dim, NORMS != 0u); d++) {
        squares = fma(plain_k[head + d], plain_k[head + d], squares);
    }
    return factor(squares, p.k_eps);
}

fn store_key(base: u32, token: u32, dimension: u32, values: vec2<f32>) {
    if F32_CACHE != 0u {
        cache[base + dimension * 16u + token] = bitcast<u32>(values.x);
        cache[base + (dimension + 1u) * 16u + token] = bitcast<u32>(values.y);
    } else {
        cache[base + dimension / 2u * 16u + token] = float_to_half(values.x) | (float_to_half(values.y) << 16u);
    }
}

fn store_value(base: u32, token: u32, dimension: u32, values: vec2<f32>) {
    if F32_CACHE != 0u {
        cache[base + token * p.head_dim + dimension] = bitcast<u32>(values.x);
        cache[base + token * p.head_dim + dimension + 1u] = bitcast<u32>(values.y);
    } else {
        cache[base + (token * p.head_dim + dimension) / 2u] = float_to_half(values.x) | (float_to_half(values.y) << 16u);
    }
}

// A thread rotates the pairs (i, i + half) and (i + 1, i + 1 + half) of a head.
@compute @workgroup_size(64)
fn rope_store(@builtin(global_invocation_id) id: vec3<u32>) {
    let half = p.head_dim / 2u;
    let head = id.x / (half / 2u);
    let i = id.x % (half / 2u) * 2u;
    if head >= p.heads + p.kv_heads {
        return;
    }
    let row = id.y;
    let position = position_of(row);
    let first = angles[position * half + i];
    let second = angles[position * half + i + 1u];
    let cos = vec2<f32>(first.x, second.x);
    let sin = vec2<f32>(first.y, second.y);
    if head < p.heads {
        let at = (row * p.heads + head) * p.head_dim + i;
        let factor = query_factor(at - i);
        let a = query(at - i, i, factor);
        let b = query(at - i, i + half, factor);
        let rotated_a = fma(a, cos, -(b * sin));
        let rotated_b = fma(b, cos, a * sin);
        q[at] = rotated_a.x;
        q[at + 1u] = rotated_a.y;
        q[at + half] = rotated_b.x;
        q[at + half + 1u] = rotated_b.y;
        return;
    }
    let kv_head = head - p.heads;
    let at = (row * p.kv_heads + kv_head) * p.head_dim + i;
    let factor = key_factor(at - i);
    let a = key(at - i, i, factor);
    let b = key(at - i, i + half, factor);
    let rotated_a = fma(a, cos, -(b * sin));
    let rotated_b = fma(b, cos, a * sin);
    k[at] = rotated_a.x;
    k[at + 1u] = rotated_a.y;
    k[at + half] = rotated_b.x;
    k[at + half + 1u] = rotated_b.y;

    let block = block_of(row, position);
    let token = position % 16u;
    let head_words = select(8u, 16u, F32_CACHE != 0u) * p.head_dim;
    let keys = (block * 2u * p.kv_heads + kv_head) * head_words;
    let values = keys + p.kv_heads * head_words;
    store_key(keys, token, i, rotated_a);
    store_key(keys, token, i + half, rotated_b);
    store_value(values, token, i, vec2<f32>(v[at], v[at + 1u]));
    store_value(values, token, i + half, vec2<f32>(v[at + half], v[at + half + 1u]));
}
