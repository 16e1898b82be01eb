//! What is on disk about jobs and evaluations, as plain data. Must not know the queues or the work.

pub mod evaluation;
pub mod failure;
pub mod job;
pub mod thresholds;
