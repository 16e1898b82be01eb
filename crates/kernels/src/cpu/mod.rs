//! The CPU: the device that runs everywhere. All SIMD, the thread pool and the arenas are in this folder.
//!
//! Read first: [`device`], then [`linear`] and [`attention`] (the forward), [`backward`] and [`grad`] (training). Products run
//! on packed [`weights`] through [`int8`], [`gemm`], [`bf16`] or [`int16`]; adapters through [`lora`]. [`simd`] and [`isa`] are
//! the one vocabulary in which they are written, [`pool`] is how they run on several threads.
//!
//! It takes and returns its own types ([`tensor::Tensor`], [`weights::Weights`], ...); it does not know the opaque types of the
//! crate's face, or that there could be another device.

#[cfg(test)]
pub(crate) use kernels_common::reference;

pub(crate) mod arena;
pub(crate) mod attention;
pub(crate) mod backward;
mod bandwidth;
mod bf16;
pub(crate) mod candidates;
#[cfg(test)]
pub(crate) mod check;
pub(crate) mod device;
mod elementwise;
mod gemm;
mod grad;
mod head_norm;
mod int16;
mod int8;
pub(crate) mod isa;
pub(crate) mod kv;
pub(crate) mod linear;
pub(crate) mod lora;
mod math;
pub(crate) mod norm;
pub(crate) mod pause;
mod pool;
pub(crate) mod rope;
mod rows;
mod scatter;
mod simd;
mod sync;
pub(crate) mod tensor;
#[cfg(test)]
mod tests;
mod ticket_lock;
pub(crate) mod weights;
