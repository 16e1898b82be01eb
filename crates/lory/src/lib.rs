//! The binary's parts, as a library: so that they can be tested as a user meets them.

pub mod access;
pub mod catalog;
pub mod cli;
pub mod home;
pub mod http;
pub mod memory;
pub mod progress;
pub mod pull;
pub mod runner;
pub mod service;
