//! The process's memory and files: mapped files, and the allocator's settings.

mod heap;
mod mapped;

pub use heap::{return_freed_memory, trim_heap};
pub use mapped::{MappedFile, map_file};
