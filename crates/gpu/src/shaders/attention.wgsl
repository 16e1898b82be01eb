// Attention of rotated queries over the paged cache, whose layout is in rope_store.wgsl.
//
// The tokens of a row are cut into splits of 128, the last one shorter. Each split has its largest score, the sum of its
// weights and the weighted sum of its values; `fold` adds them in order. `walk` has one workgroup for a row and head; `split`
// has one for each split, and `combine` folds what it wrote. Both give the same bits.

override F32_CACHE: u32;

struct Parameters {
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    // The most splits of a row.
    splits: u32,
    // 1 / sqrt(head_dim)
    scale: f32,
}
var<immediate> p: Parameters;

@group(0) @binding(0) var<storage, read> q: array<f32>;
@group(0) @binding(1) var<storage, read> cache: array<u32>;
@group(0) @binding(2) var<storage, read> metadata: array<u32>;
@group(0) @binding(3) var<storage, read_write> parts: array<f32>;  // row > head > split: largest, sum, values
@group(0) @binding(4) var<storage, read_write> out: array<f32>;

const SPLIT: u32 = 128u;

struct Split {
    largest: f32,
    sum: f32,
    values: vec2<f32>,
}

var<workgroup> query: array<f32, 256>;
var<workgroup> weights: array<f32, 128>;

fn keys_of(row: u32, token: u32, kv_head: u32) -> u32 {
    let block = block_of(row, token);
    return (block * 2u * p.kv_heads + kv_head) * select(8u, 16u, F32_CACHE != 0u) * p.head_dim;
}

fn score(row: u32, token: u32, kv_head: u32) -> f32 {
    let keys = keys_of(row, token, kv_head) + token % 16u;
    var sum = 0.0;
    for (var d = 0u; d < p.head_dim; d += 2u) {
        var key: vec2<f32>;
        if F32_CACHE != 0u {
            key = vec2<f32>(bitcast<f32>(cache[keys + d * 16u]), bitcast<f32>(cache[keys + (d + 1u) * 16u]));
        } else {
            key = half_pair(cache[keys + d / 2u * 16u]);
        }
        sum = fma(query[d + 1u], key.y, fma(query[d], key.x, sum));
    }
    return sum * p.scale;
}

// Dimensions `pair` and `pair + 1` of a token's value.
fn value_of(row: u32, token: u32, kv_head: u32, pair: u32) -> vec2<f32> {
    let head_words = select(8u, 16u, F32_CACHE != 0u) * p.head_dim;
    let values = keys_of(row, token, kv_head) + p.kv_heads * head_words;
    let at = token % 16u * p.head_dim + pair;
    if F32_CACHE != 0u {
        return vec2<f32>(bitcast<f32>(cache[values + at]), bitcast<f32>(cache[values + at + 1u]));
    }
    return half_pair(cache[values + at / 2u]);
}

// All threads of the workgroup together; `query` is set. Thread `lane` returns dimensions 2 * lane and 2 * lane + 1.
fn attend(row: u32, kv_head: u32, first: u32, tokens: u32, lane: u32) -> Split {
    let token = first + lane;
    var own = -3.0e38;
    if lane < tokens {
        own = score(row, token, kv_head);
    }
    let largest = largest_of_lanes(own, lane);
    var weight = 0.0;
    if lane < tokens {
        weight = exponential(own - largest);
    }
    weights[lane] = weight;
    let sum = sum_of_lanes(weight, lane);
    var values = vec2<f32>();
    if 2u * lane < p.head_dim {
        for (var t = 0u; t < tokens; t++) {
            values = fma(vec2<f32>(weights[t]), value_of(row, first + t, kv_head, 2u * lane), values);
        }
    }
    workgroupBarrier();
    return Split(largest, sum, values);
}

fn fold(a: Split, b: Split) -> Split {
    let largest = max(a.largest, b.largest);
    let of_a = exponential(a.largest - largest);
    let of_b = exponential(b.largest - largest);
    return Split(
        largest,
        fma(b.sum, of_b, a.sum * of_a),
        fma(b.values, vec2<f32>(of_b), a.values * of_a),
    );
}

fn write_out(row: u32, head: u32, lane: u32, total: Split) {
    if 2u * lane < p.head_dim {
        let at = (row * p.heads + head) * p.head_dim + 2u * lane;
        out[at] = total.values.x / total.sum;
        out[at + 1u] = total.values.y / total.sum;
    }
}

fn load_query(row: u32, head: u32, lane: u32) {
    for (var d = lane; d < p.head_dim; d += 128u) {
        query[d] = q[(row * p.heads + head) * p.head_dim + d];
    }
    workgroupBarrier();
}

@compute @workgroup_size(128)
fn walk(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let head = group.x;
    let row = group.y;
    let kv_head = head / (p.heads / p.kv_heads);
    let tokens = position_of(row) + 1u;
    load_query(row, head, lane);
    var total = attend(row, kv_head, 0u, min(tokens, SPLIT), lane);
    for (var first = SPLIT; first < tokens; first += SPLIT) {
        total = fold(total, attend(row, kv_head, first, min(tokens - first, SPLIT), lane));
    }
    write_out(row, head, lane, total);
}

@compute @workgroup_size(128)
fn split(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let head = group.x;
    let row = group.y;
    let kv_head = head / (p.heads / p.kv_heads);
    let tokens = position_of(row) + 1u;
    let first = group.z * SPLIT;
    if first >= tokens {
        return;
    }
    load_query(row, head, lane);
    let one = attend(row, kv_head, first, min(tokens - first, SPLIT), lane);
    let at = ((row * p.heads + head) * p.splits + group.z) * (p.head_dim + 2u);
    if lane == 0u {
        parts[at] = one.largest;
        parts[at + 1u] = one.sum;
    }
    if 2u * lane < p.head_dim {
        parts[at + 2u + 2u * lane] = one.values.x;
        parts[at + 3u + 2u * lane] = one.values.y;
    }
}

fn part(at: u32, lane: u32) -> Split {
    let values = at + 2u + 2u * min(lane, p.head_dim / 2u - 1u);
    return Split(parts[at], parts[at + 1u], vec2<f32>(parts[values], parts[values + 1u]));
}

@compute @workgroup_size(128)
fn combine(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let head = group.x;
    let row = group.y;
    let splits = (position_of(row) + SPLIT) / SPLIT;
    let stride = p.head_dim + 2u;
    let at = (row * p.heads + head) * p.splits * stride;
    var total = part(at, lane);
    for (var s = 1u; s < splits; s++) {
        total = fold(total, part(at + s * stride, lane));
    }
    write_out(row, head, lane, total);
}
