//! The file of the real base: its configuration and its tensors.

use std::collections::BTreeMap;

use formats::config::{ModelConfig, RopeStyle};
use formats::gguf::{Gguf, dequantize};

use crate::FILE;

#[test]
fn real_base_has_the_expected_configuration() {
    let config = ModelConfig::from_gguf(&Gguf::open(&FILE).unwrap()).unwrap();
    let expected = ModelConfig {
        architecture: "llama".into(),
        hidden_size: 576,
        layers: 30,
        heads: 9,
        kv_heads: 3,
        head_dim: 64,
        intermediate_size: 1536,
        vocab_size: 49152,
        context_length: 8192,
        rope_theta: 100_000.0,
        rope_style: RopeStyle::Interleaved,
        rope_freq_factors: None,
        rms_norm_eps: 1e-5,
        tie_word_embeddings: true,
        qkv_bias: false,
        qk_norm: false,
    };
    assert_eq!(config, expected);
}

#[test]
fn every_tensor_of_the_real_base_is_read() {
    let gguf = Gguf::open(&FILE).unwrap();
    assert_eq!(gguf.tensors().len(), 272);
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for tensor in gguf.tensors() {
        *seen.entry(tensor.dtype.name()).or_default() += 1;
        let mut values = vec![0.0; tensor.elements()];
        dequantize(tensor.dtype, tensor.data, &mut values).unwrap();
        assert!(
            values.iter().all(|value| value.is_finite()),
            "{}",
            tensor.name
        );
    }
    assert_eq!(
        seen,
        BTreeMap::from([("F32", 61), ("Q4_1", 210), ("Q8_0", 1)])
    );
}
