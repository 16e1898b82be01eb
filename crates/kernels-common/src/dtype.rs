//! The types in which values are stored and computed, as plain data.

use crate::rows::BLOCK_TOKENS;

/// The arithmetic of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compute {
    /// Quantized weights against int8 activations; float weights against f32. Serving.
    Int8,
    /// Weights as f32 (dequantized inside the product) against f32 activations.
    F32,
    /// Both sides rounded to 16 bits, in the form that the device multiplies fastest: bf16 with sums in f32 where it has a
    /// bf16 dot product; otherwise int16 with exact sums in a backward, and `F32` in a forward.
    Bits16,
}

/// The type of the keys and values in a KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvType {
    /// 2 bytes a value; serving.
    F16,
    /// 4 bytes a value; training and parity checks.
    F32,
}

/// The part of a model's shape that the size of its keys and values depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Number of layers.
    pub layers: usize,
    /// Heads of keys and values in a layer.
    pub kv_heads: usize,
    /// Values in a head.
    pub head_dim: usize,
}

impl KvShape {
    /// Bytes of a block over all layers.
    pub fn block_bytes(self, dtype: KvType) -> usize {
        let value = match dtype {
            KvType::F16 => 2,
            KvType::F32 => 4,
        };
        self.layers * 2 * BLOCK_TOKENS * self.kv_heads * self.head_dim * value
    }
}

/// The type of an adapter's values on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoraType {
    /// 4 bytes a value; training.
    F32,
    /// 2 bytes a value.
    F16,
    /// 2 bytes a value.
    Bf16,
}

/// The encoding of the bytes that weights are packed from, named as in GGUF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, non_camel_case_types)]
pub enum SourceType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    IQ4_NL,
    IQ4_XS,
}

impl SourceType {
    /// Values in a block.
    pub fn block_values(self) -> usize {
        use SourceType::*;
        match self {
            F32 | F16 | BF16 => 1,
            Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q8_0 | IQ4_NL => 32,
            Q2_K | Q3_K | Q4_K | Q5_K | Q6_K | IQ4_XS => 256,
        }
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        use SourceType::*;
        match self {
            F32 => 4,
            F16 | BF16 => 2,
            Q4_0 | IQ4_NL => 18,
            Q4_1 => 20,
            Q5_0 => 22,
            Q5_1 => 24,
            Q8_0 => 34,
            Q2_K => 84,
            Q3_K => 110,
            IQ4_XS => 136,
            Q4_K => 144,
            Q5_K => 176,
            Q6_K => 210,
        }
    }
}
