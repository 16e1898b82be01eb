// Sums and maxima over a workgroup of 128 threads, in an order that is fixed: it does not depend on the subgroup's size.

var<workgroup> lanes: array<f32, 128>;

fn sum_of_lanes(value: f32, lane: u32) -> f32 {
    lanes[lane] = value;
    workgroupBarrier();
    for (var n = 64u; n > 0u; n >>= 1u) {
        if lane < n {
            lanes[lane] += lanes[lane + n];
        }
        workgroupBarrier();
    }
    let total = lanes[0];
    workgroupBarrier();
    return total;
}

fn largest_of_lanes(value: f32, lane: u32) -> f32 {
    lanes[lane] = value;
    workgroupBarrier();
    for (var n = 64u; n > 0u; n >>= 1u) {
        if lane < n {
            lanes[lane] = max(lanes[lane], lanes[lane + n]);
        }
        workgroupBarrier();
    }
    let largest = lanes[0];
    workgroupBarrier();
    return largest;
}
