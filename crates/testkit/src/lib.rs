//! What tests share and no product code sees.

pub mod fake_model;

pub use fake_model::{FakeAdapter, FakeModel, Fault, Gate, StepSeen};
