// Rotates queries and keys by their positions, in place, and writes keys and values into a layer of the cache.
//
// A layer of the cache: block > keys:   head > dimension > 16 tokens   (threads of a score are tokens)
//                               values: head > 16 tokens > dimension   (threads of an output are dimensions)
// In f16, dimensions 2j and 2j + 1 share a word.

override F32_CACHE: u32;

struct Parameters {
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
}
var<immediate> p: Parameters;

@group(0) @binding(0) var<storage, read> v: array<f32>;
@group(0) @binding(1) var<storage, read> angles: array<vec2<f32>>;  // position > pair: cos, sin
@group(0) @binding(2) var<storage, read> metadata: array<u32>;
@group(0) @binding(3) var<storage, read_write> q: array<f32>;
@group(0) @binding(4) var<storage, read_write> k: array<f32>;
@group(0) @binding(5) var<storage, read_write> cache: array<u32>;

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
    let position = metadata[row * 8u + 1u];
    let first = angles[position * half + i];
    let second = angles[position * half + i + 1u];
    let cos = vec2<f32>(first.x, second.x);
    let sin = vec2<f32>(first.y, second.y);
    if head < p.heads {
        let at = (row * p.heads + head) * p.head_dim + i;
        let a = vec2<f32>(q[at], q[at + 1u]);
        let b = vec2<f32>(q[at + half], q[at + half + 1u]);
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
    let a = vec2<f32>(k[at], k[at + 1u]);
    let b = vec2<f32>(k[at + half], k[at + half + 1u]);
    let rotated_a = fma(a, cos, -(b * sin));
    let rotated_b = fma(b, cos, a * sin);
    k[at] = rotated_a.x;
    k[at + 1u] = rotated_a.y;
    k[at + half] = rotated_b.x;
    k[at + half + 1u] = rotated_b.y;

    let block = metadata[metadata[row * 8u + 2u] + position / 16u];
    let token = position % 16u;
    let head_words = select(8u, 16u, F32_CACHE != 0u) * p.head_dim;
    let keys = (block * 2u * p.kv_heads + kv_head) * head_words;
    let values = keys + p.kv_heads * head_words;
    store_key(keys, token, i, rotated_a);
    store_key(keys, token, i + half, rotated_b);
    store_value(values, token, i, vec2<f32>(v[at], v[at + 1u]));
    store_value(values, token, i + half, vec2<f32>(v[at + half], v[at + half + 1u]));
}
