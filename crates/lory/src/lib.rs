//! The binary's parts, as a library: so that they can be tested as a user meets them.

pub mod access;
pub mod catalog;
pub mod cli;
mod evaluation;
pub mod home;
pub mod http;
pub mod jobs;
pub mod judgements;
pub mod kept;
pub mod memory;
pub mod plan;
pub mod progress;
pub mod pull;
pub mod runner;
pub mod service;
pub mod sharing;
mod training;
mod web;
