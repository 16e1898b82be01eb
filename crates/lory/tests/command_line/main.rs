//! Tests of the built binary on a tiny random base.

mod bases;
mod chat;
mod data;
mod demo_and_serve;
mod devices;
mod eval;
#[cfg(unix)]
mod examples;
mod generate;
mod help;
#[cfg(unix)]
mod jobs;
mod keys;
#[cfg(unix)]
mod killed;
#[cfg(unix)]
mod operations;
mod persona;
mod preference;
mod pull;
mod pull_repository;
mod registry;
mod s3;
mod tables;
mod test_dir;
mod train_and_eval;
mod usage;
