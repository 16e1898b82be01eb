//! A merged file against the base with the adapter applied at run time: the same logits, within the precision of its types.

use std::sync::Arc;

use formats::gguf::{GgmlType, Gguf};
use formats::peft::Adapter;
use kernels::{Compute, Device, DeviceChoice, KvType};
use model::{Model, merge};
use testkit::{tiny_adapter, tiny_config, tiny_gguf_as};

fn open(bytes: Vec<u8>) -> (Gguf, Model) {
    let gguf = Gguf::parse(Arc::new(bytes), "tiny").unwrap();
    let model = Model::load(
        &gguf,
        Device::open(DeviceChoice::Cpu { threads: Some(1) }).unwrap(),
    )
    .unwrap();
    (gguf, model)
}

/// Logits of some tokens in f32, with an adapter at a scale or with the base alone.
fn logits(model: &Model, adapter: Option<(&Adapter, f32)>) -> Vec<f32> {
    let tokens: Vec<u32> = (0..40).map(|i| (i * 104_729) % 250).collect();
    let packed: Vec<_> = adapter
        .iter()
        .map(|a| model.load_adapter(a.0).unwrap())
        .collect();
    let adapter = packed.iter().zip(adapter.map(|(_, scale)| scale)).next();
    testkit::logits(model, &tokens, adapter, Compute::F32, KvType::F32)
        .values()
        .to_vec()
}

/// The largest difference by the largest logit.
fn difference(a: &[f32], b: &[f32]) -> f32 {
    let most = |values: &mut dyn Iterator<Item = f32>| values.fold(0.0, f32::max);
    let largest = most(&mut a.iter().map(|x| x.abs()));
    most(&mut a.iter().zip(b).map(|(a, b)| (a - b).abs())) / largest
}

#[test]
fn a_merged_model_computes_what_base_and_adapter_do() {
    let adapter = tiny_adapter(3, &tiny_config(), 4, 1.5);
    for (base, to, bound) in [
        (GgmlType::F32, None, 1e-4),
        (GgmlType::Q4_1, Some(GgmlType::F32), 1e-4),
        (GgmlType::Q4_1, Some(GgmlType::BF16), 0.05),
        (GgmlType::Q4_1, Some(GgmlType::Q8_0), 0.1),
    ] {
        let (gguf, model) = open(tiny_gguf_as(1, base));
        let unmerged = logits(&model, Some((&adapter, 0.7)));
        let file = merge(&gguf, &adapter, 0.7, to).unwrap();
        let (merged_file, merged) = open(file.to_bytes().unwrap());
        let found = difference(&unmerged, &logits(&merged, None));
        assert!(found < bound, "{base} to {to:?}: {found}");
        // The adapter says something, and rows in the wrong order would say something else.
        assert!(difference(&unmerged, &logits(&model, None)) > 0.2);
        for (was, is) in gguf.tensors().zip(merged_file.tensors()) {
            let touched = was.name.starts_with("blk.") && !was.name.contains("norm");
            assert_eq!((was.name, was.dims), (is.name, is.dims));
            assert_eq!(is.dtype, to.filter(|_| touched).unwrap_or(was.dtype));
        }
        let file_type = merged_file.get_u32("general.file_type").unwrap();
        assert_eq!(file_type, to.unwrap_or(base).file_type());
    }
}

#[test]
fn nothing_at_scale_0_and_a_type_that_is_not_written_is_named() {
    let (gguf, model) = open(tiny_gguf_as(1, GgmlType::F32));
    let adapter = tiny_adapter(3, &tiny_config(), 4, 1.5);
    let (_, same) = open(
        merge(&gguf, &adapter, 0.0, None)
            .unwrap()
            .to_bytes()
            .unwrap(),
    );
    assert_eq!(logits(&model, None), logits(&same, None));
    let Err(error) = merge(&gguf, &adapter, 1.0, Some(GgmlType::Q6_K)) else {
        panic!("Q6_K is written");
    };
    let message = error.to_string();
    assert!(
        message.contains("blk.0.attn_q.weight") && message.contains("Q6_K"),
        "{message}"
    );
}
