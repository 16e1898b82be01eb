//! What the tests of all crates share. No product code depends on it.
//!
//! - [`tiny`]: a Llama with random weights that answers in milliseconds, as the bytes of a GGUF file, and random adapters for it.
//!   Read this first. Tests of `model`, `train`, `registry` and `base` need no more.
//! - [`logits`]: logits of a whole text in one call and perplexity, for comparisons with a reference.
//! - [`fake_model`]: a model without weights, for tests of the scheduler in `engine`.
//! - [`gpu`]: the graphics card that tests run on, if there is one.
//! - [`home`]: a temporary folder with the tiny base and personas, and commands that run in it.
//! - [`server`] and [`http`]: a running server, in this process or as the built binary, and a client for it.
//!
//! The server in this process needs the feature `server`, so that tests of lower crates do not build the HTTP stack.

pub mod fake_model;
pub mod gpu;
pub mod home;
pub mod http;
mod logits;
pub mod server;
pub mod tiny;

pub use fake_model::{FakeAdapter, FakeModel, Fault, Gate, StepSeen};
pub use logits::{Logits, log_probabilities, logits, perplexity};
pub use tiny::{tiny_adapter, tiny_config, tiny_gguf, tiny_gguf_as};
