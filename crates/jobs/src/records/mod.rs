//! What is on disk about jobs, files and evaluations, as plain data. Must not know the queues or the work.

pub mod client_message;
pub mod evaluation;
pub mod failure;
pub mod file;
pub mod job;
pub mod thresholds;
