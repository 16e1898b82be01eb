// The most probable tokens of rows of logits, and the sum of exp(logit - largest). A workgroup finds those of a chunk of a row;
// with MERGE, those of a row among its chunks' own.
//
// Logits are compared as integers that rise with them. With the complement of the id behind, no two are equal, and of equal logits
// the lower id comes first, whatever the order in which threads find them. Result:
//
//     largest logit, 1 if there is a NaN or +inf, sum, number of tokens, then (id, logit) of each in descending order

override MERGE: u32;

struct Parameters {
    columns: u32,
    // Where (row, number of tokens) are in `tables`.
    rows: u32,
    // The most tokens of a row.
    most: u32,
    chunks: u32,
}
var<immediate> p: Parameters;

@group(0) @binding(0) var<storage, read> tables: array<u32>;
// Rows of logits; with MERGE the results of chunks: row > chunk.
@group(0) @binding(1) var<storage, read> input: array<u32>;
@group(0) @binding(2) var<storage, read_write> result: array<u32>;

const CHUNK: u32 = 4096u;
const OF_NEGATIVE_INFINITY: u32 = 0x007fffffu;
const OF_INFINITY: u32 = 0xff800000u;

var<workgroup> largest: atomic<u32>;
var<workgroup> wrong: atomic<u32>;
var<workgroup> lowest_id: atomic<u32>;
var<workgroup> found: atomic<u32>;
var<workgroup> digits: array<atomic<u32>, 256>;
var<workgroup> chosen: vec3<u32>;
var<workgroup> keys: array<u32, 128>;
var<workgroup> ids: array<u32, 128>;

// Rises with the number; -0 is +0.
fn key_of(bits: u32) -> u32 {
    if bits == 0x80000000u {
        return 0x80000000u;
    }
    return select(bits | 0x80000000u, ~bits, (bits >> 31u) == 1u);
}

fn bits_of(key: u32) -> u32 {
    return select(~key, key & 0x7fffffffu, (key >> 31u) == 1u);
}

fn result_words() -> u32 {
    return 4u + 2u * p.most;
}

// Where the result of a chunk is.
fn part_of(row: u32, chunk: u32) -> u32 {
    return (row * p.chunks + chunk) * result_words();
}

// The key and the id of entry i. A key of 0: there is none.
fn entry(group: vec3<u32>, i: u32) -> vec2<u32> {
    if MERGE == 0u {
        let column = group.x * CHUNK + i;
        return vec2<u32>(key_of(input[tables[p.rows + 2u * group.y] * p.columns + column]), column);
    }
    let part = part_of(group.y, i / p.most);
    let j = i % p.most;
    if j >= input[part + 3u] {
        return vec2<u32>(0u, 0u);
    }
    return vec2<u32>(key_of(input[part + 5u + 2u * j]), input[part + 4u + 2u * j]);
}

fn entries(group: vec3<u32>) -> u32 {
    if MERGE == 0u {
        return min(CHUNK, p.columns - group.x * CHUNK);
    }
    return p.chunks * p.most;
}

// Of the entries that share the digits above `shift` with `prefix`: the digit in which the `wanted`-th largest is, how many are
// wanted of that digit, and how many have it. The value of an entry is its key, or, among those with this key, the
// complement of its id.
fn narrow(group: vec3<u32>, lane: u32, by_id: bool, key: u32, prefix: u32, shift: u32, wanted: u32) -> vec3<u32> {
    atomicStore(&digits[lane], 0u);
    atomicStore(&digits[lane + 128u], 0u);
    workgroupBarrier();
    var above = 0u;
    if shift < 24u {
        above = 0xffffffffu << (shift + 8u);
    }
    for (var i = lane; i < entries(group); i += 128u) {
        let e = entry(group, i);
        let value = select(e.x, ~e.y, by_id);
        if (!by_id || e.x == key) && (value & above) == prefix {
            atomicAdd(&digits[(value >> shift) & 255u], 1u);
        }
    }
    workgroupBarrier();
    if lane == 0u {
        var left = wanted;
        var digit = 255u;
        while digit > 0u && atomicLoad(&digits[digit]) < left {
            left -= atomicLoad(&digits[digit]);
            digit -= 1u;
        }
        chosen = vec3<u32>(digit, left, atomicLoad(&digits[digit]));
    }
    workgroupBarrier();
    let result = chosen;
    workgroupBarrier();
    return result;
}

// Writes the `count` largest entries to `keys` and `ids`, in no order.
fn find(group: vec3<u32>, lane: u32, count: u32) {
    if count == 1u {
        let key = atomicLoad(&largest);
        for (var i = lane; i < entries(group); i += 128u) {
            let e = entry(group, i);
            if e.x == key {
                atomicMin(&lowest_id, e.y);
            }
        }
        workgroupBarrier();
        if lane == 0u {
            keys[0] = key;
            ids[0] = atomicLoad(&lowest_id);
        }
        return;
    }
    var least_key = 0u;
    var step = vec3<u32>(0u, count, 0u);
    for (var shift = 24i; shift >= 0; shift -= 8) {
        step = narrow(group, lane, false, 0u, least_key, u32(shift), step.y);
        least_key |= step.x << u32(shift);
    }
    // Of more equals than are wanted, those with the lowest ids.
    var least_complement = 0u;
    if step.z > step.y {
        for (var shift = 24i; shift >= 0; shift -= 8) {
            step = narrow(group, lane, true, least_key, least_complement, u32(shift), step.y);
            least_complement |= step.x << u32(shift);
        }
    }
    for (var i = lane; i < entries(group); i += 128u) {
        let e = entry(group, i);
        if e.x > least_key || (e.x == least_key && ~e.y >= least_complement) {
            let at = atomicAdd(&found, 1u);
            keys[at] = e.x;
            ids[at] = e.y;
        }
    }
}

// The sum of exp(logit - largest), in an order that is fixed.
fn sum(group: vec3<u32>, lane: u32) -> f32 {
    let key = atomicLoad(&largest);
    let max = bitcast<f32>(bits_of(key));
    var own = 0.0;
    if key > OF_NEGATIVE_INFINITY && MERGE == 0u {
        for (var i = lane; i < entries(group); i += 128u) {
            let e = entry(group, i);
            if e.x > OF_NEGATIVE_INFINITY {
                own += exponential(bitcast<f32>(bits_of(e.x)) - max);
            }
        }
    } else if key > OF_NEGATIVE_INFINITY {
        for (var chunk = lane; chunk < p.chunks; chunk += 128u) {
            let part = part_of(group.y, chunk);
            if key_of(input[part]) > OF_NEGATIVE_INFINITY {
                own = fma(bitcast<f32>(input[part + 2u]), exponential(bitcast<f32>(input[part]) - max), own);
            }
        }
    }
    return sum_of_lanes(own, lane);
}

@compute @workgroup_size(128)
fn candidates(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    if lane == 0u {
        atomicStore(&largest, 0u);
        atomicStore(&wrong, 0u);
        atomicStore(&lowest_id, 0xffffffffu);
        atomicStore(&found, 0u);
    }
    workgroupBarrier();
    var own = 0u;
    var own_wrong = false;
    for (var i = lane; i < entries(group); i += 128u) {
        let e = entry(group, i);
        own = max(own, e.x);
        if MERGE == 0u {
            own_wrong = own_wrong || e.x >= OF_INFINITY || e.x < OF_NEGATIVE_INFINITY;
        }
    }
    if MERGE != 0u {
        for (var chunk = lane; chunk < p.chunks; chunk += 128u) {
            own_wrong = own_wrong || input[part_of(group.y, chunk) + 1u] != 0u;
        }
    }
    atomicMax(&largest, own);
    if own_wrong {
        atomicStore(&wrong, 1u);
    }
    workgroupBarrier();
    let total = sum(group, lane);
    let asked = tables[p.rows + 2u * group.y + 1u];
    let count = min(asked, select(p.columns, entries(group), MERGE == 0u));
    find(group, lane, count);
    workgroupBarrier();
    let part = select(group.y * result_words(), part_of(group.y, group.x), MERGE == 0u);
    if lane == 0u {
        result[part] = bits_of(atomicLoad(&largest));
        result[part + 1u] = atomicLoad(&wrong);
        result[part + 2u] = bitcast<u32>(total);
        result[part + 3u] = count;
    }
    if lane < count {
        var rank = 0u;
        for (var i = 0u; i < count; i++) {
            if keys[i] > keys[lane] || (keys[i] == keys[lane] && ids[i] < ids[lane]) {
                rank += 1u;
            }
        }
        result[part + 4u + 2u * rank] = ids[lane];
        result[part + 5u + 2u * rank] = bits_of(keys[lane]);
    }
}
