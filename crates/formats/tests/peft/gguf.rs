//! Adapters as GGUF for llama.cpp: names, shapes, the order of rows and the scale.

use std::sync::Arc;

use formats::config::RopeStyle;
use formats::gguf::{GgmlType, Gguf, TensorView, dequantize};
use formats::peft::{Adapter, AdapterConfig, Dtype, LoraPair, Module};

use super::{model, pair};

fn adapter(modules: &[Module]) -> Adapter {
    let pairs = (0..3).flat_map(|layer| {
        modules
            .iter()
            .map(move |&module| pair(layer, module, 2, 2.0))
    });
    Adapter {
        config: AdapterConfig::new(2, 4.0, modules),
        pairs: pairs.collect(),
        dtype: Dtype::F32,
        metadata: [("lory.base_sha256", "ab"), ("else", "x")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
        base_tensors: Vec::new(),
    }
}

fn written(adapter: &Adapter, scale: f32, dtype: Dtype) -> Gguf {
    let file = adapter.to_gguf(&model(), scale, dtype).unwrap();
    Gguf::parse(Arc::new(file.to_bytes().unwrap()), "adapter").unwrap()
}

fn values(tensor: TensorView<'_>) -> Vec<f32> {
    let mut values = vec![0.0; tensor.elements()];
    dequantize(tensor.dtype, tensor.data, &mut values).unwrap();
    values
}

/// What llama.cpp adds to a linear (llama-adapter.h, get_scale): alpha / rank * B A, by rows of the file.
fn delta(file: &Gguf, name: &str) -> Vec<f32> {
    let side = |side: &str| file.tensor(&format!("{name}.weight.lora_{side}")).unwrap();
    let (a, b) = (side("a"), side("b"));
    let ([inputs, rank], [b_rank, outputs]) = (a.dims, b.dims) else {
        panic!("{name}: {:?} {:?}", a.dims, b.dims);
    };
    assert_eq!(rank, b_rank);
    let (inputs, rank, outputs) = (*inputs as usize, *rank as usize, *outputs as usize);
    let alpha = file.get_f32("adapter.lora.alpha").unwrap().unwrap();
    assert_ne!(alpha, 0.0, "llama.cpp takes 0 for none");
    let scale = alpha / rank as f32;
    product(&values(a), &values(b), (inputs, rank, outputs), scale)
}

fn product(
    a: &[f32],
    b: &[f32],
    (inputs, rank, outputs): (usize, usize, usize),
    scale: f32,
) -> Vec<f32> {
    let cell = |i: usize| {
        let (row, column) = (i / inputs, i % inputs);
        let sum: f32 = (0..rank)
            .map(|r| b[row * rank + r] * a[r * inputs + column])
            .sum();
        scale * sum
    };
    (0..inputs * outputs).map(cell).collect()
}

/// What the pair itself adds, its rows as llama.cpp's converter orders them: it reads a head's rows as [2, dim / 2] and
/// turns them to [dim / 2, 2].
fn expected(pair: &LoraPair, scale: f32) -> Vec<f32> {
    let shape = (pair.inputs, pair.rank, pair.outputs);
    let plain = product(&pair.a, &pair.b, shape, scale * pair.scale);
    let heads = match pair.module {
        Module::Q => model().heads,
        Module::K => model().kv_heads,
        _ => return plain,
    };
    let half = pair.outputs / heads / 2;
    let row = |head: usize, i: usize, part: usize| (head * 2 + part) * half + i;
    let rows = (0..heads)
        .flat_map(|head| (0..half).flat_map(move |i| (0..2).map(move |part| row(head, i, part))));
    rows.flat_map(|row| plain[row * pair.inputs..][..pair.inputs].to_vec())
        .collect()
}

#[track_caller]
fn agrees(adapter: &Adapter, file: &Gguf, scale: f32) {
    assert_eq!(file.tensors().len(), 2 * adapter.pairs.len());
    for pair in &adapter.pairs {
        let name = format!("blk.{}.{}", pair.layer, pair.module.gguf_name());
        let (found, wanted) = (delta(file, &name), expected(pair, scale));
        let largest = wanted.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        for (found, wanted) in found.iter().zip(&wanted) {
            assert!(
                (found - wanted).abs() <= 1e-6 * largest,
                "{name}: {found} {wanted}"
            );
        }
    }
}

#[test]
fn every_pair_has_the_same_effect_as_in_peft() {
    let adapter = adapter(&Module::ALL);
    for scale in [1.0, 1.15, -0.5, 0.0] {
        agrees(&adapter, &written(&adapter, scale, Dtype::F32), scale);
    }
    let file = written(&adapter, 1.0, Dtype::BF16);
    assert!(file.tensors().all(|tensor| tensor.dtype == GgmlType::BF16));
    let text = |key: &str| file.get_str(key).unwrap();
    assert_eq!(
        (text("general.type"), text("adapter.type")),
        (Some("adapter"), Some("lora"))
    );
    assert_eq!(text("general.architecture"), Some("llama"));
    assert_eq!(file.get_f32("adapter.lora.alpha").unwrap(), Some(4.0));
    assert_eq!((text("lory.base_sha256"), text("else")), (Some("ab"), None));
}

#[test]
fn scales_that_llama_cpp_cannot_express_are_multiplied_into_b() {
    // rsLoRA: alpha / sqrt(rank), which one alpha can still express.
    let mut root = adapter(&[Module::Q, Module::Up]);
    root.config.use_rslora = true;
    root.pairs
        .iter_mut()
        .for_each(|pair| pair.scale = (4.0 / 2f64.sqrt()) as f32);
    agrees(&root, &written(&root, 1.0, Dtype::F32), 1.0);
    // Some pairs have another alpha: one number cannot express both.
    let mut mixed = adapter(&[Module::Q, Module::Up]);
    mixed.config.alpha_pattern = vec![("up_proj".to_owned(), 10.0)];
    for pair in mixed
        .pairs
        .iter_mut()
        .filter(|pair| pair.module == Module::Up)
    {
        pair.scale = 5.0;
    }
    agrees(&mixed, &written(&mixed, 1.3, Dtype::F32), 1.3);
}

#[test]
fn rows_keep_their_order_if_the_base_has_hugging_faces_order() {
    let adapter = adapter(&[Module::Q]);
    let mut config = model();
    config.rope_style = RopeStyle::HalfSplit;
    config.architecture = "qwen2".to_owned();
    let file = adapter.to_gguf(&config, 1.0, Dtype::F32).unwrap();
    let file = Gguf::parse(Arc::new(file.to_bytes().unwrap()), "adapter").unwrap();
    let b = values(file.tensor("blk.1.attn_q.weight.lora_b").unwrap());
    assert_eq!(b, adapter.pairs[1].b);
    let mut wild = adapter.clone();
    wild.pairs[0].b[3] = 1e9;
    let message = wild
        .to_gguf(&config, 1.0, Dtype::F16)
        .err()
        .unwrap()
        .to_string();
    assert!(
        message.contains("layers.0.self_attn.q_proj.lora_B") && message.contains("F16"),
        "{message}"
    );
    wild.pairs[0].layer = 7;
    assert!(wild.to_gguf(&config, 1.0, Dtype::F32).is_err());
}
