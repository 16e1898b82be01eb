//! Graphics cards, through wgpu: Vulkan and Metal.
//!
//! Read first: [`device`] and `executor`, then [`linear`] and [`attention`].
//!
//! | module | has |
//! |---|---|
//! | `device`, `executor` | an opened card; its buffers, pipelines and launches |
//! | `kernels` | the list of kernels; their WGSL is in `shaders/` |
//! | `tensor`, `weights`, `lora`, `step` | what is on the card: rows of f32, packed matrices, adapters, the metadata of a step |
//! | `linear`, `attention`, `rows`, `candidates` | the operations |
//! | `heap`, `tables` | the adapters of all tones in one buffer; what launches look up by row |
//! | `cards`, `info` | the cards of this machine |
//!
//! It takes and returns its own types; the crate `kernels` joins it with the CPU behind one `Device`.
//!
//! A row's result does not depend on its batch:
//! 1. Inside a group of 32 inputs, products are sums of integers, which are exact.
//! 2. Across groups, slices of a fixed size are chains of `fma`, and are added in order.
//! 3. Attention is cut into splits of a fixed size, which are folded in order.
//! 4. Sums over a workgroup have a fixed order. There are no float atomics, and nothing depends on the subgroup's size.
//! 5. Where there are two kernels for few and many rows, tests show that their bits are equal.
//!
//! It has no backward yet: training runs on the CPU.

pub mod attention;
pub mod candidates;
pub mod cards;
pub mod device;
mod executor;
mod heap;
pub mod info;
mod kernels;
pub mod linear;
pub mod lora;
pub mod rows;
pub mod step;
mod tables;
pub mod tensor;
#[cfg(test)]
mod tests;
pub mod weights;
