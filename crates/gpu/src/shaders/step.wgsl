// How shaders read a step's `metadata`, which each of them binds; step.rs writes it.

fn token_of(row: u32) -> u32 {
    return metadata[row * 8u];
}

fn position_of(row: u32) -> u32 {
    return metadata[row * 8u + 1u];
}

// The block of the cache that has a token of the row's sequence.
fn block_of(row: u32, token: u32) -> u32 {
    return metadata[metadata[row * 8u + 2u] + token / 16u];
}

// Where the row's (slot, scale) pairs are.
fn adapters_of(row: u32) -> u32 {
    return metadata[row * 8u + 3u];
}

fn adapter_count_of(row: u32) -> u32 {
    return metadata[row * 8u + 4u];
}
