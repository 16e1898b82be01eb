//! The command line. Reads flags, calls the crates below, and prints.

pub mod cli;
