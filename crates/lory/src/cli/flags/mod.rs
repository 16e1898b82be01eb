//! Flags that several commands have, and what they stand for.

pub(crate) mod base;
pub(crate) mod dataset;
pub(crate) mod engine;
pub(crate) mod personas;
pub(crate) mod registry;
pub(crate) mod sampling;
pub(crate) mod server;
pub(crate) mod units;
pub(crate) mod variables;
