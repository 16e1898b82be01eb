// The rows in front of products, in one launch: workgroup 0 of a row normalises or gates it and rounds it to 8 bits; the others
// multiply it with A of its adapters, 8 rows of A each, and normalise or gate it again on the way, which costs less than another
// launch.

struct Parameters {
    columns: u32,
    eps: f32,
    // 0: the rows as they are. 1: the norm of the rows. 2: silu(x) * second.
    prologue: u32,
    write_int8: u32,
    write_float: u32,
    // Layout of `shrunk`: row > projection > entry > rank.
    projections: u32,
    entries: u32,
    padded: u32,
    // Where the packs of the projections are in `tables`: projection > slot.
    table: u32,
    slots: u32,
}
var<immediate> p: Parameters;

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> second: array<f32>;  // the norm's weights by column, or rows like x
@group(0) @binding(2) var<storage, read> metadata: array<u32>;
@group(0) @binding(3) var<storage, read> tables: array<u32>;
@group(0) @binding(4) var<storage, read> adapters: array<u32>;
@group(0) @binding(5) var<storage, read_write> int8: array<u32>;       // row > group > 8 words of 4
@group(0) @binding(6) var<storage, read_write> scales: array<vec2<u32>>; // row > group: scale, sums of both halves
@group(0) @binding(7) var<storage, read_write> float: array<f32>;
@group(0) @binding(8) var<storage, read_write> shrunk: array<f32>;

const CHUNK: u32 = 8u;

fn value(row: u32, column: u32, factor: f32) -> f32 {
    let at = row * p.columns + column;
    let v = x[at];
    switch p.prologue {
        case 0u: { return v; }
        case 1u: { return v * factor * second[column]; }
        default: { return v / (1.0 + exponential(-v)) * second[at]; }
    }
}

fn row_factor(row: u32, lane: u32) -> f32 {
    var squares = 0.0;
    for (var k = lane; k < p.columns; k += 128u) {
        let v = x[row * p.columns + k];
        squares = fma(v, v, squares);
    }
    return inverseSqrt(sum_of_lanes(squares, lane) / f32(p.columns) + p.eps);
}

// A group of 32 as integers of -127..127 with one scale. The sums serve offsets and minima.
fn quantize(row: u32, group: u32, factor: f32) {
    var largest = 0.0;
    for (var k = 0u; k < 32u; k++) {
        largest = max(largest, abs(value(row, group * 32u + k, factor)));
    }
    let inverse = select(0.0, 127.0 / largest, largest > 0.0);
    let at = row * (p.columns / 32u) + group;
    var sums = vec2<i32>();
    for (var word = 0u; word < 8u; word++) {
        var packed = 0u;
        for (var byte = 0u; byte < 4u; byte++) {
            let v = value(row, group * 32u + word * 4u + byte, factor);
            let q = clamp(i32(round(v * inverse)), -127, 127);
            sums[word / 4u] += q;
            packed |= (bitcast<u32>(q) & 0xffu) << (8u * byte);
        }
        int8[at * 8u + word] = packed;
    }
    let both = (bitcast<u32>(sums.x) & 0xffffu) | (bitcast<u32>(sums.y) << 16u);
    scales[at] = vec2<u32>(bitcast<u32>(largest / 127.0), both);
}

fn shrink(row: u32, tile: u32, factor: f32, lane: u32) {
    let chunks = (p.padded + CHUNK - 1u) / CHUNK;
    let first = tile % chunks * CHUNK;
    let entry = tile / chunks % p.entries;
    let projection = tile / chunks / p.entries;
    let pack = pack_of(row, entry, p.table + projection * p.slots * 4u);
    if first >= pack.rank {
        return;
    }
    let pairs = (p.columns + 1u) / 2u;
    var sums = array<f32, CHUNK>();
    for (var j = lane; j < pairs; j += 128u) {
        var v = vec2<f32>(value(row, 2u * j, factor), 0.0);
        if 2u * j + 1u < p.columns {
            v.y = value(row, 2u * j + 1u, factor);
        }
        for (var i = 0u; i < CHUNK; i++) {
            if first + i < pack.rank {
                let a = adapter_pair(pack.a, (first + i) * pairs + j, pack.dtype);
                sums[i] = fma(a.y, v.y, fma(a.x, v.x, sums[i]));
            }
        }
    }
    let to = ((row * p.projections + projection) * p.entries + entry) * p.padded + first;
    for (var i = 0u; i < CHUNK; i++) {
        let total = sum_of_lanes(sums[i], lane);
        if lane == 0u && first + i < pack.rank {
            shrunk[to + i] = total * pack.scale;
        }
    }
}

@compute @workgroup_size(128)
fn prepare(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = group.y;
    var factor = 1.0;
    if p.prologue == 1u {
        factor = row_factor(row, lane);
    }
    if group.x > 0u {
        shrink(row, group.x - 1u, factor, lane);
        return;
    }
    if p.write_int8 != 0u {
        for (var g = lane; g < p.columns / 32u; g += 128u) {
            quantize(row, g, factor);
        }
    }
    if p.write_float != 0u {
        for (var k = lane; k < p.columns; k += 128u) {
            float[row * p.columns + k] = value(row, k, factor);
        }
    }
}
