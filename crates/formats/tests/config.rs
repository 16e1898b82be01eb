//! Model configurations: the real base's, and what is refused.

use std::sync::Arc;

use formats::config::{ModelConfig, RopeStyle};
use formats::gguf::{GgmlType, Gguf, GgufWriter, Value};

fn config() -> ModelConfig {
    ModelConfig {
        architecture: "llama".into(),
        hidden_size: 64,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 16,
        intermediate_size: 96,
        vocab_size: 50,
        context_length: 128,
        rope_theta: 10_000.0,
        rope_style: RopeStyle::Interleaved,
        rope_freq_factors: None,
        rms_norm_eps: 1e-5,
        tie_word_embeddings: true,
        qkv_bias: false,
        qk_norm: false,
    }
}

fn writer(config: &ModelConfig) -> GgufWriter {
    let mut writer = GgufWriter::new();
    config.write_metadata(&mut writer);
    let dims = [config.hidden_size as u64, config.vocab_size as u64];
    let bytes = vec![0; config.hidden_size * config.vocab_size * 4];
    writer
        .tensor("token_embd.weight", GgmlType::F32, &dims, bytes)
        .unwrap();
    writer
}

fn read(writer: &GgufWriter) -> Result<ModelConfig, String> {
    let gguf = Gguf::parse(Arc::new(writer.to_bytes().unwrap()), "test.gguf").unwrap();
    ModelConfig::from_gguf(&gguf).map_err(|error| error.to_string())
}

fn f32s(values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

#[test]
fn written_metadata_is_read_back() {
    assert_eq!(read(&writer(&config())).unwrap(), config());
    let qwen = ModelConfig {
        architecture: "qwen2".into(),
        rope_style: RopeStyle::HalfSplit,
        qkv_bias: true,
        ..config()
    };
    let mut file = writer(&qwen);
    file.tensor("blk.0.attn_q.bias", GgmlType::F32, &[64], vec![0; 256])
        .unwrap();
    assert_eq!(read(&file).unwrap(), qwen);
    let mut file = writer(&config());
    file.tensor(
        "output.weight",
        GgmlType::F32,
        &[64, 50],
        vec![0; 64 * 50 * 4],
    )
    .unwrap();
    file.tensor(
        "rope_freqs.weight",
        GgmlType::F32,
        &[8],
        f32s(&[1.0, 1.0, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0]),
    )
    .unwrap();
    let read = read(&file).unwrap();
    assert!(!read.tie_word_embeddings);
    assert_eq!(read.rope_freq_factors.unwrap()[4], 4.0);
}

#[test]
fn qwen3_has_query_and_key_norms() {
    let qwen = ModelConfig {
        architecture: "qwen3".into(),
        rope_style: RopeStyle::HalfSplit,
        qk_norm: true,
        ..config()
    };
    assert_eq!(read(&writer(&qwen)).unwrap(), qwen);
}

#[test]
fn sliding_window_limits_the_context() {
    for (window, context) in [(64u32, 64), (4096, 128), (0, 128)] {
        let mut file = writer(&config());
        file.metadata("llama.attention.sliding_window", window);
        assert_eq!(read(&file).unwrap().context_length, context, "{window}");
    }
}

#[test]
fn linear_scaling_divides_every_frequency() {
    let mut file = writer(&config());
    file.metadata("llama.rope.scaling.type", "linear")
        .metadata("llama.rope.scaling.factor", 4.0f32);
    assert_eq!(read(&file).unwrap().rope_freq_factors, Some(vec![4.0; 8]));
    file.tensor("rope_freqs.weight", GgmlType::F32, &[8], f32s(&[1.0; 8]))
        .unwrap();
    assert!(read(&file).unwrap_err().contains("at once"));
}

#[test]
fn unsupported_and_invalid_keys_are_refused_by_name() {
    let changed =
        |key: &str, value: Value| read(writer(&config()).metadata(key, value)).unwrap_err();
    let cases: [(&str, Value, &str); 20] = [
        (
            "general.architecture",
            "falcon".into(),
            "architecture \"falcon\" is not supported",
        ),
        (
            "llama.expert_count",
            8u32.into(),
            "mixture of experts (llama.expert_count)",
        ),
        (
            "llama.rope.scaling.type",
            "yarn".into(),
            "rope scaling \"yarn\"",
        ),
        (
            "llama.rope.scaling.factor",
            0.5f32.into(),
            "llama.rope.scaling.factor: 0.5 is not from 1",
        ),
        (
            "llama.logit_scale",
            0.5f32.into(),
            "llama.logit_scale is not supported",
        ),
        (
            "llama.rope.dimension_count",
            8u32.into(),
            "llama.rope.dimension_count 8 with a head of 16",
        ),
        (
            "llama.attention.value_length",
            8u32.into(),
            "llama.attention.value_length 8",
        ),
        (
            "llama.attention.key_length",
            15u32.into(),
            "a head of 15 is not an even width",
        ),
        (
            "llama.attention.head_count_kv",
            3u32.into(),
            "4 heads cannot share 3",
        ),
        (
            "llama.attention.head_count",
            0u32.into(),
            "0 is not from 1 to 4096",
        ),
        (
            "llama.block_count",
            100_000u32.into(),
            "100000 is not from 1 to 4096",
        ),
        (
            "llama.embedding_length",
            u64::MAX.into(),
            "llama.embedding_length: 18446744073709551615 is not from",
        ),
        (
            "llama.embedding_length",
            32u32.into(),
            "token_embd.weight: dimensions [64, 50]",
        ),
        (
            "llama.feed_forward_length",
            0u32.into(),
            "llama.feed_forward_length",
        ),
        ("llama.context_length", 0u32.into(), "llama.context_length"),
        (
            "llama.context_length",
            "long".into(),
            "metadata \"llama.context_length\" is string",
        ),
        (
            "llama.rope.freq_base",
            f32::NAN.into(),
            "llama.rope.freq_base: NaN",
        ),
        (
            "llama.attention.layer_norm_rms_epsilon",
            0.0f32.into(),
            "rms_epsilon: 0 is not from",
        ),
        (
            "llama.vocab_size",
            49u32.into(),
            "has 50 rows, but llama.vocab_size is 49",
        ),
        (
            "tokenizer.ggml.tokens",
            vec![String::new(); 51].into(),
            "has 50 rows, but there are 51 tokens",
        ),
    ];
    for (key, value, expected) in cases {
        let text = changed(key, value);
        assert!(text.contains(expected), "{key}: {text}");
    }
    let error = read(&GgufWriter::new()).unwrap_err();
    assert!(
        error.contains("\"general.architecture\" is missing"),
        "{error}"
    );
    for (name, length) in [
        ("blk.0.attn_q_norm.weight", 64),
        ("blk.0.attn_output.bias", 64),
        ("rope_freqs.weight", 7),
    ] {
        let mut file = writer(&config());
        file.tensor(name, GgmlType::F32, &[length], vec![0; length as usize * 4])
            .unwrap();
        assert!(read(&file).unwrap_err().contains(name), "{name}");
    }
    let mut file = writer(&config());
    file.tensor("rope_freqs.weight", GgmlType::F32, &[8], vec![0; 32])
        .unwrap();
    assert!(read(&file).unwrap_err().contains("a factor of 0"));
}
