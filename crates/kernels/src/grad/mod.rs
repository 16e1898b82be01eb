//! What training adds to the kernels: the backward of each operation, the loss, and the optimizer's step.
//!
//! Every function is safe and single-threaded and works on `f32` slices; the caller splits rows, or pairs of
//! (sequence, kv head), over threads. Bodies are compiled once for each instruction set and keep one order of
//! additions, so all of them give the same bits. They know no layer, no adapter and no batch.

mod adamw;
mod attention;
#[cfg(test)]
pub(crate) mod check;
mod loss;
pub(crate) mod math;
mod norm;
mod rope;
mod swiglu;

pub use adamw::{AdamW, adamw};
pub use attention::{AttentionShape, attention_backward};
pub use loss::cross_entropy;
pub use norm::rmsnorm_backward;
pub use rope::rope;
pub use swiglu::swiglu_backward;
