//! GGUF, versions 2 and 3, little endian: read from bytes, one file or the parts of one, and written.
//!
//! ```text
//! "GGUF" version:u32 tensor_count:u64 metadata_count:u64
//! metadata   key:string type:u32 value        string = length:u64 bytes
//! tensors    name:string dims:u32 dim:u64.. type:u32 offset:u64
//! padding to general.alignment (default 32)
//! tensor data, each at its offset from here
//! ```
//!
//! Source: the format's description (ggml, docs/gguf.md). This module knows no model: `config` and the crates above
//! interpret keys and tensors.

mod dequantize;
mod error;
mod file;
mod ggml_type;
mod quantize;
mod read;
mod search;
mod split;
mod value;
mod write;

pub use dequantize::dequantize;
pub use error::GgufError;
pub use file::{Bytes, Gguf, TensorView};
pub use ggml_type::GgmlType;
pub use quantize::quantize;
pub use search::quantize_q4_searched;
pub use split::{MAX_PARTS, PartName, part_files};
pub use value::{Array, Value, ValueType};
pub use write::{GgufStream, GgufWriter};

/// The default alignment of tensor data.
const DEFAULT_ALIGNMENT: u64 = 32;
/// The metadata key of the alignment.
const ALIGNMENT_KEY: &str = "general.alignment";
/// Most metadata entries that a file may have.
const MAX_METADATA: u64 = 65_536;
/// Most tensors that a file may have.
const MAX_TENSORS: u64 = 65_536;
/// Longest key or tensor name, in bytes.
const MAX_NAME: u64 = 65_535;
/// Longest string value, in bytes.
const MAX_STRING: u64 = 16 << 20;
/// Most elements of one metadata array.
const MAX_ARRAY: u64 = 16 << 20;
/// Most dimensions of a tensor.
const MAX_DIMS: u32 = 4;
/// Largest alignment.
const MAX_ALIGNMENT: u64 = 1 << 20;
