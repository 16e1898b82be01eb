//! The registry in a folder, in memory, and in stores that fail.

mod changes;
mod concurrency;
mod failures;
mod fixtures;
mod garbage;
