// Operations by rows: norms, the gated activation, and copies of some rows.

struct Parameters {
    columns: u32,
    eps: f32,
    // `norm`: the number of rows. `gather`: where the row numbers are in `tables`.
    rows: u32,
}
var<immediate> p: Parameters;

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> y: array<f32>;
@group(0) @binding(2) var<storage, read> tables: array<u32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;

// `y` has the factors of the columns.
@compute @workgroup_size(128)
fn norm(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = group.y * 32768u + group.x;
    if row >= p.rows {
        return;
    }
    let first = row * p.columns;
    var squares = 0.0;
    for (var k = lane; k < p.columns; k += 128u) {
        squares = fma(x[first + k], x[first + k], squares);
    }
    let factor = inverseSqrt(sum_of_lanes(squares, lane) / f32(p.columns) + p.eps);
    for (var k = lane; k < p.columns; k += 128u) {
        out[first + k] = x[first + k] * factor * y[k];
    }
}

@compute @workgroup_size(64)
fn swiglu(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x < p.columns {
        let at = id.y * p.columns + id.x;
        out[at] = x[at] / (1.0 + exponential(-x[at])) * y[at];
    }
}

@compute @workgroup_size(64)
fn gather(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x < p.columns {
        out[id.y * p.columns + id.x] = x[tables[p.rows + id.y] * p.columns + id.x];
    }
}
