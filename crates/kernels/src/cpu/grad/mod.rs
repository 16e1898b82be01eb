//! The arithmetic of training: the backward of each operation, and the loss.
//!
//! Every function is safe and single-threaded and works on `f32` slices; the caller splits rows, or pairs of
//! (sequence, kv head), over threads. Bodies are compiled once for each instruction set and keep one order of
//! additions, so all of them give the same bits. They do not know layers, adapters or batches.

mod attention;
mod loss;
mod norm;
mod swiglu;

pub(crate) use attention::{AttentionShape, QueryRange, attention_backward};
pub(crate) use loss::cross_entropy;
pub(crate) use norm::rmsnorm_backward;
pub(crate) use swiglu::swiglu_backward;
