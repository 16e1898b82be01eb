//! What the kernels of every device share: types of values, quantized source formats, the metadata of a step, errors.
//!
//! | module | has |
//! |---|---|
//! | `dtype` | the types in which values are stored and computed |
//! | `quantized` | the quantized source formats, as groups of integers with scales |
//! | `rows`, `step` | the metadata of a step's rows, and its checked copy |
//! | `rope` | rotary angles |
//! | `candidates` | the most probable tokens of a row of logits |
//! | `error` | what can go wrong when a device is opened or memory is allocated |
//! | `check`, `reference` | for tests: random inputs, tolerances, and the slow versions of the kernels; with the feature `check` |
//!
//! It computes nothing that is fast, and knows no device. `kernels` and `gpu` use it.

pub mod candidates;
#[cfg(feature = "check")]
pub mod check;
pub mod dtype;
pub mod error;
pub mod quantized;
#[cfg(feature = "check")]
pub mod reference;
pub mod rope;
pub mod rows;
pub mod step;
