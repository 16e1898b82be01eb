//! Files that are not a model, or only half of one, are refused by name.

use std::sync::Arc;

use formats::gguf::{GgmlType, Gguf, GgufWriter};
use kernels::{BLOCK_TOKENS, Compute, Device, DeviceChoice, KvType, Span};
use model::{Batch, Buffers, Model};
use testkit::{tiny_adapter, tiny_config, tiny_gguf, tiny_gguf_as};

fn load(bytes: Vec<u8>) -> Result<Model, String> {
    let gguf = Gguf::parse(Arc::new(bytes), "model.gguf").map_err(|e| e.to_string())?;
    Model::load(
        &gguf,
        Device::open(DeviceChoice::Cpu { threads: Some(1) }).unwrap(),
    )
    .map_err(|e| e.to_string())
}

/// The tiny model with one tensor replaced (`None`: left out).
fn with(name: &str, tensor: Option<(GgmlType, &[u64], Vec<u8>)>) -> Vec<u8> {
    let gguf = Gguf::parse(Arc::new(tiny_gguf(1)), "tiny").unwrap();
    let mut writer = GgufWriter::new();
    for (key, value) in gguf.metadata() {
        writer.metadata(key, value.clone());
    }
    for t in gguf.tensors().filter(|t| t.name != name) {
        writer
            .tensor(t.name, t.dtype, t.dims, t.data.to_vec())
            .unwrap();
    }
    if let Some((dtype, dims, data)) = tensor {
        writer.tensor(name, dtype, dims, data).unwrap();
    }
    writer.to_bytes().unwrap()
}

#[test]
fn a_missing_or_misshapen_tensor_is_named() {
    assert!(load(tiny_gguf(1)).is_ok());
    let error = load(with("blk.1.ffn_up.weight", None)).err().unwrap();
    assert!(
        error.contains("model.gguf") && error.contains("\"blk.1.ffn_up.weight\" is missing"),
        "{error}"
    );
    let small = (GgmlType::F32, &[32u64, 4][..], vec![0; 32 * 4 * 4]);
    let error = load(with("blk.0.attn_q.weight", Some(small)))
        .err()
        .unwrap();
    assert!(
        error.contains("attn_q") && error.contains("[32, 4]"),
        "{error}"
    );
    let c = tiny_config();
    let dims = [c.hidden_size as u64, c.intermediate_size as u64];
    let other = (
        GgmlType::I8,
        &dims[..],
        vec![0; c.hidden_size * c.intermediate_size],
    );
    let error = load(with("blk.0.ffn_up.weight", Some(other)))
        .err()
        .unwrap();
    assert!(error.contains("I8") && error.contains("Q4_K"), "{error}");
}

#[test]
fn an_adapter_of_another_shape_is_named() {
    let model = load(tiny_gguf(1)).unwrap();
    let mut adapter = tiny_adapter(1, model.config(), 4, 1.0);
    assert!(model.load_adapter(&adapter).is_ok());
    adapter.pairs[3].inputs += 1;
    let error = model.load_adapter(&adapter).err().unwrap().to_string();
    assert!(error.contains("o_proj"), "{error}");
}

#[test]
fn every_weight_type_gives_near_the_same_logits() {
    let tokens: Vec<u32> = (0..20).map(|i| i * 13 % 250).collect();
    let logits = |dtype| {
        let model = load(tiny_gguf_as(7, dtype)).unwrap();
        let blocks: Vec<u32> = (0..tokens.len().div_ceil(BLOCK_TOKENS) as u32).collect();
        let mut cache = model
            .new_cache(model.config().layers, blocks.len(), KvType::F16)
            .unwrap();
        let span = Span {
            first: 0,
            rows: tokens.len(),
            past: 0,
            blocks: &blocks,
        };
        let batch = Batch {
            tokens: &tokens,
            spans: &[span],
            runs: &[],
            adapters: &[],
            dropout: &[],
        };
        let mut logits = model.device().tensor();
        model.forward(
            batch,
            &mut cache,
            &mut Buffers::new(model.device()),
            &[19],
            Compute::Int8,
            &mut logits,
        );
        logits.read()
    };
    let exact = logits(GgmlType::F32);
    let size = exact.iter().map(|x| x * x).sum::<f32>().sqrt();
    for (dtype, tolerance) in [
        (GgmlType::F16, 0.01),
        (GgmlType::BF16, 0.03),
        (GgmlType::Q8_0, 0.05),
        (GgmlType::Q5_1, 0.2),
        (GgmlType::Q5_0, 0.3),
        (GgmlType::Q4_1, 0.4),
        (GgmlType::Q4_0, 0.5),
    ] {
        let off: f32 = logits(dtype)
            .iter()
            .zip(&exact)
            .map(|(x, y)| (x - y).powi(2))
            .sum();
        let off = off.sqrt() / size;
        assert!(off < tolerance, "{dtype}: {off}");
        assert!(off > 0.0, "{dtype} rounds");
    }
}
