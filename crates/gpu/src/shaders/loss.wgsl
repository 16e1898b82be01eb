// Cross entropy over the vocabulary, a workgroup a row: the logits become their gradients.

struct Parameters {
    columns: u32,
    // Where the targets are in `tables`, followed by the scales.
    targets: u32,
    rows: u32,
    // The place of the first row's loss.
    first: u32,
}
var<immediate> p: Parameters;

@group(0) @binding(0) var<storage, read> tables: array<u32>;
@group(0) @binding(1) var<storage, read_write> logits: array<f32>;
@group(0) @binding(2) var<storage, read_write> losses: array<f32>;

@compute @workgroup_size(128)
fn cross_entropy(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let first = group.x * p.columns;
    let column = tables[p.targets + group.x];
    let scale = bitcast<f32>(tables[p.targets + p.rows + group.x]);
    let of_target = logits[first + column];
    var own = -3.0e38;
    for (var k = lane; k < p.columns; k += 128u) {
        own = max(own, logits[first + k]);
    }
    let largest = largest_of_lanes(own, lane);
    var sum = 0.0;
    for (var k = lane; k < p.columns; k += 128u) {
        let e = exponential(logits[first + k] - largest);
        logits[first + k] = e;
        sum += e;
    }
    let total = sum_of_lanes(sum, lane);
    for (var k = lane; k < p.columns; k += 128u) {
        logits[first + k] = scale * (logits[first + k] / total - select(0.0, 1.0, k == column));
    }
    if lane == 0u {
        losses[p.first + group.x] = log(total) + (largest - of_target);
    }
}
