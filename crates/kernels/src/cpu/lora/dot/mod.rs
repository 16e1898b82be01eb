//! Mixed LoRA by products of bf16 pairs (`vdpbf16ps`), for serving: x and h are rounded to bf16 as the adapter is, sums are
//! f32. A sixth of the work of widening every value, and at a few rows the widening is what costs.

mod expand;
#[cfg(target_arch = "x86_64")]
mod product;
mod shrink;

pub(crate) use expand::expand;
