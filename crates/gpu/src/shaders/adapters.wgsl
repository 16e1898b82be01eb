// How a row finds its adapters: its metadata lists (slot, scale), a table per linear layer has the slot's pack.

struct Pack {
    // First words in `adapters`.
    a: u32,
    b: u32,
    // 0: the slot has no pack for this linear layer, or the row has fewer adapters.
    rank: u32,
    dtype: u32,
    // The adapter's, times the row's.
    scale: f32,
}

fn pack_of(row: u32, entry: u32, table: u32) -> Pack {
    if entry >= adapter_count_of(row) {
        return Pack(0u, 0u, 0u, 0u, 0.0);
    }
    let at = adapters_of(row) + 2u * entry;
    let pack = table + metadata[at] * 4u;
    return Pack(
        tables[pack],
        tables[pack + 1u],
        tables[pack + 2u] & 0xffffu,
        tables[pack + 2u] >> 16u,
        bitcast<f32>(tables[pack + 3u]) * bitcast<f32>(metadata[at + 1u]),
    );
}

// Values 2 * index and 2 * index + 1 of a matrix.
fn adapter_pair(matrix: u32, index: u32, dtype: u32) -> vec2<f32> {
    switch dtype {
        case 0u: {
            let at = matrix + 2u * index;
            return vec2<f32>(bitcast<f32>(adapters[at]), bitcast<f32>(adapters[at + 1u]));
        }
        case 1u: {
            return half_pair(adapters[matrix + index]);
        }
        default: {
            return bf16_pair(adapters[matrix + index]);
        }
    }
}
