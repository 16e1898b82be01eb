//! Everything that computes: the thread pool, quantized tiles, products with mixed LoRA, paged attention, and the
//! backward of each. The one crate with unsafe code, intrinsics and `cfg` for a device; its face is safe.
//!
//! It knows tensors and rows. It knows no model, no file format, no request.

mod arena;
mod attention;
mod backward;
mod bandwidth;
mod bf16;
mod device;
mod elementwise;
mod gemm;
mod grad;
mod head_norm;
mod heap;
mod int8;
mod isa;
mod kv;
mod linear;
mod lora;
mod mapped;
mod norm;
mod pool;
mod simd;
mod tensor;
mod turns;
mod weights;
mod whole;

pub use attention::{RopeTable, Span};
pub use backward::AttentionInputs;
pub use device::Device;
pub use grad::AdamW;
pub use heap::return_freed_memory;
pub use isa::Isa;
pub use kv::{BLOCK_TOKENS, KvCache, KvType};
pub use linear::{Compute, Norm, Projection, Workspace};
pub use lora::{Dropout, Lora, LoraArena, LoraGrad, LoraPack, LoraType, RowDropout, Run};
pub use mapped::{MappedFile, map_file};
pub use tensor::Tensor;
pub use weights::{SourceType, Weights};

/// What can go wrong when a device is made or weights are packed.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The system has no memory left.
    #[error(
        "no memory for {bytes} more bytes: {source}; take a smaller base, or give back other memory"
    )]
    Memory {
        /// How many were asked for.
        bytes: usize,
        /// What the system says.
        source: std::io::Error,
    },
    /// `LORY_ISA` asks for what is not there.
    #[error(
        "LORY_ISA={name}: not an instruction set of this machine; known: scalar, neon, avx2, avx512"
    )]
    Isa {
        /// What was asked for.
        name: String,
    },
    /// A tensor's shape does not fit its bytes, or its neighbours.
    #[error("shape mismatch: {what}")]
    Shape {
        /// What was found.
        what: String,
    },
}

#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;
