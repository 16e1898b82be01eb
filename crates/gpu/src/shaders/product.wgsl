// Products of rows with up to three matrices, their bias, and the adapters' products with B; and the lookup of embeddings.
//
// A slice is 8 groups of 32 inputs: one chain of fma. The slices of an output are added in order. `few` computes slices side by
// side, `many` one after the other: both give the same bits, so a row's result does not depend on how many rows there are.

// 0: f32, 1: f16, 2: bf16, 3: 4-bit integers, 4: 8-bit integers.
override FORMAT: u32;
// Whether rows are 8-bit integers.
override INT8: u32;
override OFFSET: u32;
override WIDE: u32;
override MINIMUM: u32;
override HALVES: u32;

struct Part {
    outputs: u32,
    // Columns of the result, and the first one of this part.
    columns: u32,
    column: u32,
    // 1: add to the result. 2: there is a bias. The projection is in the bits from 8 on.
    flags: u32,
}
struct Parameters {
    rows: u32,
    inputs: u32,
    // The first tiles of parts 1 and 2.
    second: u32,
    third: u32,
    // As in prepare.wgsl; no adapters if `entries` is 0.
    projections: u32,
    entries: u32,
    padded: u32,
    table: u32,
    slots: u32,
    unused_0: u32,
    unused_1: u32,
    unused_2: u32,
    parts: array<Part, 3>,
}
var<immediate> p: Parameters;

@group(0) @binding(0) var<storage, read> quants_0: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read> quants_1: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> quants_2: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> scales_0: array<u32>;
@group(0) @binding(4) var<storage, read> scales_1: array<u32>;
@group(0) @binding(5) var<storage, read> scales_2: array<u32>;
@group(0) @binding(6) var<storage, read> bias_0: array<f32>;
@group(0) @binding(7) var<storage, read> bias_1: array<f32>;
@group(0) @binding(8) var<storage, read> bias_2: array<f32>;
@group(0) @binding(9) var<storage, read> x: array<vec4<u32>>;
@group(0) @binding(10) var<storage, read> x_scales: array<vec2<u32>>;
@group(0) @binding(11) var<storage, read> shrunk: array<f32>;
@group(0) @binding(12) var<storage, read> metadata: array<u32>;
@group(0) @binding(13) var<storage, read> tables: array<u32>;
@group(0) @binding(14) var<storage, read> adapters: array<u32>;
@group(0) @binding(15) var<storage, read_write> out_0: array<f32>;
@group(0) @binding(16) var<storage, read_write> out_1: array<f32>;
@group(0) @binding(17) var<storage, read_write> out_2: array<f32>;

const SLICE: u32 = 8u;

fn quants(part: u32, at: u32) -> vec4<u32> {
    switch part {
        case 0u: { return quants_0[at]; }
        case 1u: { return quants_1[at]; }
        default: { return quants_2[at]; }
    }
}

fn scale_word(part: u32, at: u32) -> u32 {
    switch part {
        case 0u: { return scales_0[at]; }
        case 1u: { return scales_1[at]; }
        default: { return scales_2[at]; }
    }
}

// The scales of a group's halves, then their minima.
fn scales_of(part: u32, output: u32, group: u32) -> vec4<f32> {
    let outputs = p.parts[part].outputs;
    if WIDE == 0u {
        if MINIMUM == 0u {
            let word = scale_word(part, (group >> 1u) * outputs + output);
            let scale = half_to_float(word >> (16u * (group & 1u)));
            return vec4<f32>(scale, scale, 0.0, 0.0);
        }
        let both = half_pair(scale_word(part, group * outputs + output));
        return both.xxyy;
    }
    let at = group * (1u + HALVES) * (1u + MINIMUM) * outputs + output;
    var scales = vec4<f32>(bitcast<f32>(scale_word(part, at)));
    scales.y = bitcast<f32>(scale_word(part, at + HALVES * outputs));
    scales.z = 0.0;
    scales.w = 0.0;
    if MINIMUM != 0u {
        scales.z = bitcast<f32>(scale_word(part, at + (1u + HALVES) * outputs));
        scales.w = bitcast<f32>(scale_word(part, at + (1u + 2u * HALVES) * outputs));
    }
    return scales;
}

// Inputs 4 * word .. 4 * word + 4 of a group.
fn weights_of(part: u32, output: u32, group: u32, word: u32) -> vec4<f32> {
    let outputs = p.parts[part].outputs;
    if FORMAT == 0u {
        return bitcast<vec4<f32>>(quants(part, (group * 8u + word) * outputs + output));
    }
    if FORMAT <= 2u {
        let eight = quants(part, (group * 4u + word / 2u) * outputs + output);
        let four = select(eight.xy, eight.zw, (word & 1u) == 1u);
        if FORMAT == 1u {
            return vec4<f32>(half_pair(four.x), half_pair(four.y));
        }
        return vec4<f32>(bf16_pair(four.x), bf16_pair(four.y));
    }
    let half = word / 4u;
    let scales = scales_of(part, output, group);
    var integers: vec4<f32>;
    if FORMAT == 3u {
        let nibbles = (quants(part, group * outputs + output)[word & 3u] >> (4u * half)) & 0x0f0f0f0fu;
        integers = vec4<f32>(vec4<i32>(unpack4xU8(nibbles)) - vec4<i32>(i32(OFFSET)));
    } else {
        integers = vec4<f32>(unpack4xI8(quants(part, (group * 2u + half) * outputs + output)[word & 3u]));
    }
    return fma(integers, vec4<f32>(scales[half]), vec4<f32>(scales[2u + half]));
}

fn add_group_int8(part: u32, output: u32, row: u32, group: u32, chain: f32) -> f32 {
    let outputs = p.parts[part].outputs;
    let at = row * (p.inputs / 32u) + group;
    var low: vec4<u32>;
    var high: vec4<u32>;
    if FORMAT == 3u {
        let both = quants(part, group * outputs + output);
        low = both & vec4<u32>(0x0f0f0f0fu);
        high = (both >> vec4<u32>(4u)) & vec4<u32>(0x0f0f0f0fu);
    } else {
        low = quants(part, group * 2u * outputs + output);
        high = quants(part, (group * 2u + 1u) * outputs + output);
    }
    let x_low = x[2u * at];
    let x_high = x[2u * at + 1u];
    var dots = vec2<i32>();
    for (var j = 0u; j < 4u; j++) {
        dots.x += dot4I8Packed(low[j], x_low[j]);
        dots.y += dot4I8Packed(high[j], x_high[j]);
    }
    let scale = bitcast<f32>(x_scales[at].x);
    let both = bitcast<i32>(x_scales[at].y);
    let sums = vec2<i32>((both << 16u) >> 16u, both >> 16u);
    if FORMAT == 3u {
        dots -= i32(OFFSET) * sums;
    }
    let scales = scales_of(part, output, group) * scale;
    if HALVES == 0u {
        var sum = fma(scales.x, f32(dots.x + dots.y), chain);
        if MINIMUM != 0u {
            sum = fma(scales.z, f32(sums.x + sums.y), sum);
        }
        return sum;
    }
    var sum = fma(scales.y, f32(dots.y), fma(scales.x, f32(dots.x), chain));
    if MINIMUM != 0u {
        sum = fma(scales.w, f32(sums.y), fma(scales.z, f32(sums.x), sum));
    }
    return sum;
}

fn add_group(part: u32, output: u32, row: u32, group: u32, chain: f32) -> f32 {
    if INT8 != 0u {
        return add_group_int8(part, output, row, group, chain);
    }
    var sum = chain;
    for (var word = 0u; word < min(8u, (p.inputs - group * 32u) / 4u); word++) {
        let w = weights_of(part, output, group, word);
        let v = bitcast<vec4<f32>>(x[(row * p.inputs + group * 32u) / 4u + word]);
        sum = fma(w.x, v.x, sum);
        sum = fma(w.y, v.y, sum);
        sum = fma(w.z, v.z, sum);
        sum = fma(w.w, v.w, sum);
    }
    return sum;
}

// Adds the bias and the adapters, and writes the result.
fn finish(part: u32, output: u32, row: u32, total: f32) {
    let shape = p.parts[part];
    let column = shape.column + output;
    var y = total;
    if (shape.flags & 2u) != 0u {
        switch part {
            case 0u: { y += bias_0[column]; }
            case 1u: { y += bias_1[column]; }
            default: { y += bias_2[column]; }
        }
    }
    let projection = shape.flags >> 8u;
    for (var entry = 0u; entry < p.entries; entry++) {
        let pack = pack_of(row, entry, p.table + projection * p.slots * 4u);
        let at_row = ((row * p.projections + projection) * p.entries + entry) * p.padded;
        for (var k = 0u; k < pack.rank; k += 2u) {
            let b = adapter_pair(pack.b, k / 2u * shape.columns + column, pack.dtype);
            y = fma(shrunk[at_row + k], b.x, y);
            if k + 1u < pack.rank {
                y = fma(shrunk[at_row + k + 1u], b.y, y);
            }
        }
    }
    let at = row * shape.columns + column;
    let add = (shape.flags & 1u) != 0u;
    switch part {
        case 0u: { if add { y += out_0[at]; } out_0[at] = y; }
        case 1u: { if add { y += out_1[at]; } out_1[at] = y; }
        default: { if add { y += out_2[at]; } out_2[at] = y; }
    }
}

// The part of a tile, and the tile's number in it.
fn part_of(tile: u32) -> vec2<u32> {
    if tile >= p.third {
        return vec2<u32>(2u, tile - p.third);
    }
    if tile >= p.second {
        return vec2<u32>(1u, tile - p.second);
    }
    return vec2<u32>(0u, tile);
}

fn slice_sum(part: u32, output: u32, row: u32, slice: u32, groups: u32) -> f32 {
    var chain = 0.0;
    for (var g = slice * SLICE; g < min((slice + 1u) * SLICE, groups); g++) {
        chain = add_group(part, output, row, g, chain);
    }
    return chain;
}

var<workgroup> chains: array<f32, 256>;

// 32 outputs x 8 slices of one row.
@compute @workgroup_size(32, 8)
fn few(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) id: vec3<u32>) {
    let tile = part_of(group.x);
    let part = tile.x;
    let output = tile.y * 32u + id.x;
    let outputs = p.parts[part].outputs;
    let groups = (p.inputs + 31u) / 32u;
    let slices = (groups + SLICE - 1u) / SLICE;
    var total = 0.0;
    for (var first = 0u; first < slices; first += 8u) {
        var chain = 0.0;
        if first + id.y < slices && output < outputs {
            chain = slice_sum(part, output, group.y, first + id.y, groups);
        }
        chains[id.y * 32u + id.x] = chain;
        workgroupBarrier();
        if id.y == 0u {
            for (var s = 0u; s < min(8u, slices - first); s++) {
                total += chains[s * 32u + id.x];
            }
        }
        workgroupBarrier();
    }
    if id.y == 0u && output < outputs {
        finish(part, output, group.y, total);
    }
}

// 64 outputs of 4 rows: a thread has an output, and walks the slices.
@compute @workgroup_size(64)
fn many(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) id: vec3<u32>) {
    let tile = part_of(group.x);
    let part = tile.x;
    let output = tile.y * 64u + id.x;
    if output >= p.parts[part].outputs {
        return;
    }
    let groups = (p.inputs + 31u) / 32u;
    let slices = (groups + SLICE - 1u) / SLICE;
    let first = group.y * 4u;
    let rows = min(4u, p.rows - first);
    var totals = array<f32, 4>();
    for (var slice = 0u; slice < slices; slice++) {
        var chains = array<f32, 4>();
        for (var g = slice * SLICE; g < min((slice + 1u) * SLICE, groups); g++) {
            for (var i = 0u; i < rows; i++) {
                chains[i] = add_group(part, output, first + i, g, chains[i]);
            }
        }
        for (var i = 0u; i < rows; i++) {
            totals[i] += chains[i];
        }
    }
    for (var i = 0u; i < rows; i++) {
        finish(part, output, first + i, totals[i]);
    }
}

// Looks up a token's row in part 0, whose first output is its `column`; tokens of other parts are left alone.
@compute @workgroup_size(64)
fn embed(@builtin(global_invocation_id) id: vec3<u32>) {
    let output = token_of(id.y) - p.parts[0].column;
    if id.x >= (p.inputs + 31u) / 32u || output >= p.parts[0].outputs {
        return;
    }
    for (var word = 0u; word < min(8u, (p.inputs - id.x * 32u) / 4u); word++) {
        let w = weights_of(0u, output, id.x, word);
        let at = id.y * p.inputs + id.x * 32u + word * 4u;
        out_0[at] = w.x;
        out_0[at + 1u] = w.y;
        out_0[at + 2u] = w.z;
        out_0[at + 3u] = w.w;
    }
}
