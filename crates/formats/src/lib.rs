//! Reads and writes the file formats of language models: GGUF, safetensors, model and adapter folders, configurations,
//! tokenizers and chat templates.
//!
//! Start with [`checkpoint`], which describes what a decoder's weights come from; [`gguf`] and [`folder`] are the two kinds.
//! [`config`] has the dimensions of a model, [`peft`] the adapters, [`tokenizer`] and [`chat_template`] the way from a
//! conversation to token ids. [`safetensors`] is the container of folders and adapters. [`atomic_file`], [`append_log`],
//! [`bounded_regex`] and [`decimal`] are small tools that the crates above share: [`persona_name`] has the rule of persona names, [`short_path`] hides folders in messages,
//! [`mod@file`] reads files
//! up to a limit, [`git_lfs`] recognises pointers to files, `sha256` hashes lists of fields, and [`disk`] is the layer under every file that Lory writes.
//!
//! Every input is untrusted: sizes are checked before memory is allocated, and an error names the file and the tensor or field.
//! Runs no model, and must not know threads, devices, requests or servers.

pub mod append_log;
pub mod atomic_file;
pub mod bounded_regex;
pub mod chat_template;
pub mod checkpoint;
pub mod config;
pub mod decimal;
pub mod disk;
pub mod file;
pub mod folder;
pub mod gguf;
pub mod git_lfs;
pub mod peft;
pub mod persona_name;
pub mod safetensors;
pub mod short_path;
pub mod tokenizer;

mod sha256;
