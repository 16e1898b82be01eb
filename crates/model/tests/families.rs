//! Every family from its Hugging Face folder, against the logits that transformers computes; `fixtures/make_families.py` made
//! folders and logits.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use formats::checkpoint::Checkpoint;
use formats::folder::Folder;
use kernels::{Compute, Device, DeviceChoice, KvType};
use model::Model;
use testkit::logits;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families")
}

fn path(family: &str) -> PathBuf {
    fixtures().join(family)
}

/// The families that have a folder.
fn families() -> Vec<String> {
    let folders = std::fs::read_dir(fixtures()).unwrap();
    let names = folders.map(|folder| folder.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    assert!(names.len() >= 6, "{names:?}");
    names
}

fn open(family: &str) -> Folder {
    let read = |path: &Path| Ok(Arc::new(std::fs::read(path)?) as formats::gguf::Bytes);
    Folder::open(&path(family), &read).unwrap()
}

#[test]
fn every_family_computes_what_transformers_computes() {
    for family in families() {
        let family = family.as_str();
        let oracle = std::fs::read(path(family).join("oracle.safetensors")).unwrap();
        // The tokens are integers, which our own reader leaves to others.
        let header: usize = u64::from_le_bytes(oracle[..8].try_into().unwrap()) as usize;
        let names: serde_json::Value = serde_json::from_slice(&oracle[8..8 + header]).unwrap();
        let words = |name: &str| -> Vec<u32> {
            let range = &names[name]["data_offsets"];
            let at = |i: usize| 8 + header + range[i].as_u64().unwrap() as usize;
            let words = oracle[at(0)..at(1)].as_chunks::<4>().0.iter();
            words.map(|word| u32::from_le_bytes(*word)).collect()
        };
        let tokens = words("tokens");
        let want: Vec<f32> = words("logits").into_iter().map(f32::from_bits).collect();

        let model = Model::load(
            &open(family),
            Device::open(DeviceChoice::Cpu { threads: Some(2) }).unwrap(),
        )
        .unwrap();
        let tied = std::ptr::eq(model.head(), model.embedding());
        assert_eq!(model.config().tie_word_embeddings, tied, "{family}");
        let got = logits(&model, &tokens, None, Compute::F32, KvType::F32);
        assert_eq!(want.len(), got.values().len(), "{family}");
        let largest = want.iter().fold(0f32, |m, x| m.max(x.abs()));
        let worst = got
            .values()
            .iter()
            .zip(&want)
            .fold(0f32, |m, (got, want)| m.max((got - want).abs()));
        assert!(largest > 1.0, "{family}: logits that say something");
        assert!(worst < 2e-5 * largest, "{family}: {worst} of {largest}");
    }
}

#[test]
fn a_folder_says_what_it_is() {
    let config = |family: &str| open(family).config().unwrap();
    assert_eq!(config("llama3").rope_freq_factors.unwrap().len(), 8);
    assert_eq!(config("linear").rope_freq_factors, Some(vec![2.0; 8]));
    assert_eq!(config("mistral").context_length, 64, "its sliding window");
    assert_eq!(config("qwen2").context_length, 512);
    assert!(config("qwen2").qkv_bias && config("qwen3").qk_norm);
}

#[test]
fn an_error_names_the_shard_and_the_tensor_as_they_are_called_there() {
    let folder = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(path("llama")).unwrap() {
        let file = file.unwrap().path();
        std::fs::copy(&file, folder.path().join(file.file_name().unwrap())).unwrap();
    }
    let config = folder.path().join("config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    let wrong = text.replace("\"intermediate_size\": 64", "\"intermediate_size\": 96");
    std::fs::write(&config, wrong).unwrap();
    let read = |path: &Path| Ok(Arc::new(std::fs::read(path)?) as formats::gguf::Bytes);
    let opened = Folder::open(folder.path(), &read).unwrap();
    let error = Model::load(
        &opened,
        Device::open(DeviceChoice::Cpu { threads: Some(1) }).unwrap(),
    );
    let error = error.err().unwrap().to_string();
    assert!(
        error.contains(
            "model.safetensors: tensor \"model.layers.0.mlp.gate_proj.weight\" has shape [32, 64]"
        ),
        "{error}"
    );
}
