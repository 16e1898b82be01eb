//! What tests share: a fake model for the engine, a tiny real model, and reference logits. No product code uses it.

pub mod fake_model;
mod logits;
pub mod tiny;

pub use fake_model::{FakeAdapter, FakeModel, Fault, Gate, StepSeen};
pub use logits::{Logits, log_probabilities, logits, perplexity};
pub use tiny::{tiny_adapter, tiny_config, tiny_gguf, tiny_gguf_as};
