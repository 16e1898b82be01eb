//! Products of 16-bit integers: the backward on machines without a bf16 dot product.
//!
//! Weights and gradients are rounded to integers, so a sum is exact in 32 bits, in any order of its terms:
//!
//! ```text
//! dx[i] = sum over o of dy[o] * w[o][i]  ~  step * sum over o of z[o] * q[o][i]
//! q[o][i] = round(w[o][i] / unit[o])        unit[o]: the largest magnitude of output o's weights, divided by 4095
//! z[o]    = round(dy[o] * unit[o] / step)   step: the smallest that keeps z in 16 bits and every sum in 32
//! ```
//!
//! Units belong to outputs, so a row of the gradient is rounded once for all inputs. A sum is at most the row's sum of magnitudes
//! times 4095; a step is bounded by that sum or by the row's largest value: z has 10 to 15 bits, and q 12. bf16
//! rounds every value to 8. `vpmaddwd` multiplies and adds twice as many pairs in a cycle as AVX2 has multiply-adds in f32.

mod dense;
mod panel;
mod products;
mod rounding;
mod sparse;
#[cfg(test)]
mod tests;
mod weights;
mod words;

pub(crate) use self::dense::{Int16Rows, multiply};
pub(crate) use self::panel::Panel;
pub(crate) use self::rounding::PANEL;
pub(crate) use self::sparse::SparseRows;
