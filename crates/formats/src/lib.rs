//! Bytes on one side, typed data on the other: GGUF, safetensors, models' and PEFT's folders, model configurations,
//! tokenizers and chat templates.
//!
//! Everything read here is hostile until parsed: sizes are checked before memory is taken, and an error names the
//! file, the tensor or the field. This crate runs no model and knows nothing of threads, devices or servers.

pub mod atomic_file;
pub mod chat_template;
pub mod checkpoint;
pub mod config;
pub mod decimal;
pub mod file;
pub mod folder;
pub mod gguf;
pub mod peft;
pub mod persona_name;
pub mod safetensors;
pub mod tokenizer;

mod sha256;
