//! Graphics cards, through wgpu: Vulkan and Metal.
//!
//! Read first: [`device`] and [`executor`], then [`linear`] and [`attention`]. `shaders/` has the kernels in WGSL; `kernels`
//! lists them. [`cards`] finds the cards of this machine, [`heap`] stores the adapters of all tones in one buffer, [`tables`]
//! what launches look up by row.
//!
//! A row's result does not depend on its batch:
//! 1. Inside a group of 32 inputs, products are sums of integers, which are exact.
//! 2. Across groups, slices of a fixed size are chains of `fma`, and are added in order.
//! 3. Attention is cut into splits of a fixed size, which are folded in order.
//! 4. Sums over a workgroup have a fixed order. There are no float atomics, and nothing depends on the subgroup's size.
//! 5. Where there are two kernels for few and many rows, tests show that their bits are equal.
//!
//! It has no backward yet: training runs on the CPU.

pub(crate) mod attention;
pub(crate) mod cards;
pub(crate) mod device;
mod executor;
mod heap;
mod kernels;
pub(crate) mod linear;
pub(crate) mod lora;
pub(crate) mod rows;
pub(crate) mod step;
mod tables;
pub(crate) mod tensor;
#[cfg(test)]
mod tests;
pub(crate) mod weights;
