//! The command line: reads flags, calls the crates below, and prints what they return.
//!
//! It must not know HTTP, kernels or file formats beyond the types that it passes on: a rule that a second program would need
//! is in a crate below.
//!
//! Read [`cli`] first: it lists the commands and has the `match` that runs them. Then read one command, such as
//! `cli/generate.rs`: its flags are at the top, `run` is below.

pub mod cli;
