//! The index and the weights of a stranger's folder. The input is the index, a line break, and the bytes of every shard.

#![no_main]

use std::path::Path;
use std::sync::{Arc, LazyLock};

use formats::checkpoint::Checkpoint as _;
use formats::folder::{Folder, weight_files};
use formats::gguf::Bytes;
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

static FOLDER: LazyLock<TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let config = include_bytes!("../../crates/model/tests/fixtures/families/llama3/config.json");
    std::fs::write(folder.path().join("config.json"), config).unwrap();
    folder
});

fuzz_target!(|data: &[u8]| {
    let end = data.iter().position(|byte| *byte == b'\n');
    let (index, weights) = data.split_at(end.unwrap_or(data.len()));
    let weights = weights.strip_prefix(b"\n").unwrap_or(weights).to_vec();
    let path = FOLDER.path();
    std::fs::write(path.join("model.safetensors.index.json"), index).unwrap();
    let _ = weight_files(path);
    let map = |_: &Path| -> std::io::Result<Bytes> { Ok(Arc::new(weights.clone())) };
    if let Ok(folder) = Folder::open(path, &map) {
        for name in ["token_embd.weight", "blk.0.attn_q.weight", "output_norm.weight"] {
            folder.place(name);
            if let Some(tensor) = folder.tensor(name) {
                tensor.elements();
            }
        }
    }
});
