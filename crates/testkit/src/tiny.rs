//! A tiny Llama with random weights, as the bytes of a GGUF file, and random adapters for it: with them, the
//! crates above can be tested in milliseconds, without a real base.
//!
//! Its answers are noise in printable characters: the embeddings of printable bytes are larger, and the head is tied to them.

use formats::config::{ModelConfig, RopeStyle};
use formats::gguf::{Array, GgmlType, GgufWriter, Value, quantize};
use formats::peft::{Adapter, AdapterConfig, Dtype, LoraPair, Module};
use rand_xoshiro::SplitMix64;
use rand_xoshiro::rand_core::{Rng as _, SeedableRng as _};

/// Control tokens, with the ids 0, 1, 2.
const CONTROL: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];

/// Merges of the byte-level BPE, by rank; each adds one token.
const MERGES: [&str; 12] = [
    "Ġ t", "Ġ a", "i n", "h e", "r e", "o n", "e r", "o u", "Ġt he", "a t", "Ġ o", "in g",
];

/// ChatML, with a default system turn as SmolLM2 has one.
const CHAT_TEMPLATE: &str = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
    {{ '<|im_start|>system\nYou are tiny.<|im_end|>\n' }}{% endif %}\
    {{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// Tokens in the tiny vocabulary: 3 control tokens, 256 bytes, 12 merges.
pub const VOCAB_SIZE: usize = CONTROL.len() + 256 + MERGES.len();

/// The configuration of the tiny model: hidden 64, 2 layers, 4 heads over 2 key and value heads, context 512.
pub fn tiny_config() -> ModelConfig {
    ModelConfig {
        architecture: "llama".to_owned(),
        hidden_size: 64,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 16,
        intermediate_size: 128,
        vocab_size: VOCAB_SIZE,
        context_length: 512,
        rope_theta: 10_000.0,
        rope_style: RopeStyle::Interleaved,
        rope_freq_factors: None,
        rms_norm_eps: 1e-5,
        tie_word_embeddings: true,
        qkv_bias: false,
        qk_norm: false,
    }
}

/// The tiny model in F32; the same seed gives the same bytes.
pub fn tiny_gguf(seed: u64) -> Vec<u8> {
    tiny_gguf_as(seed, GgmlType::F32)
}

/// The tiny model with its matrices (the embedding too) in `dtype`: F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0 or Q5_1.
/// The numbers before quantization are those of [`tiny_gguf`] with the same seed.
///
/// # Panics
/// For a `dtype` that `formats::gguf::quantize` does not write.
pub fn tiny_gguf_as(seed: u64, dtype: GgmlType) -> Vec<u8> {
    tiny_gguf_of(seed, dtype, tiny_config().context_length)
}

/// [`tiny_gguf_as`] with another context, for conversations that are longer; the weights are the same.
///
/// # Panics
/// As [`tiny_gguf_as`].
pub fn tiny_gguf_of(seed: u64, dtype: GgmlType, context_length: usize) -> Vec<u8> {
    let config = ModelConfig {
        context_length,
        ..tiny_config()
    };
    let mut writer = GgufWriter::new();
    config.write_metadata(&mut writer);
    writer.metadata("general.name", "tiny");
    writer.metadata(
        "general.file_type",
        Value::U32(dtype.file_type().unwrap_or(0)),
    );
    write_tokenizer(&mut writer);

    let mut random = Random::new(seed);
    let hidden = config.hidden_size;
    let matrix = |writer: &mut GgufWriter, name: &str, inputs: usize, values: Vec<f32>| {
        let dims = [inputs as u64, (values.len() / inputs) as u64];
        let data = quantize(dtype, &values).expect("a dtype that can be written");
        writer
            .tensor(name, dtype, &dims, data)
            .expect("sizes that fit");
    };

    let embedding = (0..VOCAB_SIZE)
        .flat_map(|token| {
            let size = if printable_token(token) { 0.25 } else { 0.05 };
            random.normals(hidden, size)
        })
        .collect();
    matrix(&mut writer, "token_embd.weight", hidden, embedding);
    for layer in 0..config.layers {
        norm(
            &mut writer,
            &format!("blk.{layer}.attn_norm.weight"),
            random.normals(hidden, 0.1),
        );
        norm(
            &mut writer,
            &format!("blk.{layer}.ffn_norm.weight"),
            random.normals(hidden, 0.1),
        );
        for module in Module::ALL {
            let (inputs, outputs) = module.shape(&config);
            let values = random.normals(inputs * outputs, 1.0 / (inputs as f32).sqrt());
            let name = format!("blk.{layer}.{}.weight", module.gguf_name());
            matrix(&mut writer, &name, inputs, values);
        }
    }
    norm(
        &mut writer,
        "output_norm.weight",
        random.normals(hidden, 0.1),
    );
    writer.to_bytes().expect("an alignment by default")
}

/// A LoRA adapter on all seven linears of every layer of `config`, A and B random and not zero, so that each seed gives
/// other answers. `scale` is alpha / rank.
pub fn tiny_adapter(seed: u64, config: &ModelConfig, rank: usize, scale: f32) -> Adapter {
    let mut random = Random::new(seed ^ 0xada9_7e12);
    let mut pairs = Vec::new();
    for layer in 0..config.layers {
        for module in Module::ALL {
            let (inputs, outputs) = module.shape(config);
            pairs.push(LoraPair {
                layer,
                module,
                rank,
                inputs,
                outputs,
                scale,
                a: random.normals(rank * inputs, 1.0 / (inputs as f32).sqrt()),
                b: random.normals(outputs * rank, 0.5 / (rank as f32).sqrt()),
            });
        }
    }
    Adapter {
        config: AdapterConfig::new(rank, f64::from(scale) * rank as f64, &Module::ALL),
        pairs,
        dtype: Dtype::F32,
        metadata: std::collections::BTreeMap::new(),
        base_tensors: Vec::new(),
    }
}

/// A [`tiny_adapter`] of rank 4 and scale 1 for the tiny model.
pub fn adapter(seed: u64) -> Adapter {
    tiny_adapter(seed, &tiny_config(), 4, 1.0)
}

fn norm(writer: &mut GgufWriter, name: &str, noise: Vec<f32>) {
    let values: Vec<f32> = noise.iter().map(|noise| 1.0 + noise).collect();
    let data = quantize(GgmlType::F32, &values).expect("F32 can be written");
    writer
        .tensor(name, GgmlType::F32, &[values.len() as u64], data)
        .expect("sizes that fit");
}

fn write_tokenizer(writer: &mut GgufWriter) {
    let mut tokens: Vec<String> = CONTROL.iter().map(|token| (*token).to_owned()).collect();
    tokens.extend((0..=255).map(|byte| byte_char(byte).to_string()));
    tokens.extend(MERGES.iter().map(|merge| merge.replace(' ', "")));
    let types: Vec<i32> = (0..tokens.len())
        .map(|id| if id < CONTROL.len() { 3 } else { 1 })
        .collect();
    let merges = MERGES.iter().map(|merge| (*merge).to_owned()).collect();
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    writer
        .metadata(&key("model"), "gpt2")
        .metadata(&key("pre"), "smollm")
        .metadata(&key("tokens"), Value::Array(Array::String(tokens)))
        .metadata(&key("token_type"), Value::Array(Array::I32(types)))
        .metadata(&key("merges"), Value::Array(Array::String(merges)))
        .metadata(&key("bos_token_id"), Value::U32(1))
        .metadata(&key("eos_token_id"), Value::U32(2))
        .metadata(&key("unknown_token_id"), Value::U32(0))
        .metadata(&key("padding_token_id"), Value::U32(2))
        .metadata(&key("add_bos_token"), Value::Bool(false))
        .metadata(&key("add_space_prefix"), Value::Bool(false))
        .metadata("tokenizer.chat_template", CHAT_TEMPLATE);
}

/// Whether a token is printable text.
fn printable_token(token: usize) -> bool {
    match token.checked_sub(CONTROL.len()) {
        None => false,
        Some(byte @ 0..=255) => (32..127).contains(&byte),
        Some(_) => true,
    }
}

/// The character of a byte in a byte-level BPE (GPT-2's table): itself if it is printable Latin-1, else the next one from
/// U+0100 on.
fn byte_char(byte: u8) -> char {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|byte| !printable(*byte)).count() as u32;
    char::from_u32(0x100 + before).expect("a Latin letter")
}

/// Random weights, the same on every machine.
struct Random(SplitMix64);

impl Random {
    fn new(seed: u64) -> Self {
        Random(SplitMix64::seed_from_u64(seed))
    }

    /// A uniform number between 0 and 1, both excluded.
    fn unit(&mut self) -> f32 {
        ((self.0.next_u64() >> 40) as f32 + 0.5) / (1u64 << 24) as f32
    }

    /// Nearly normal numbers of the given standard deviation, none of them zero: the sum of twelve uniform numbers, minus six. It
    /// needs no libm, so it is the same on every machine.
    fn normals(&mut self, count: usize, deviation: f32) -> Vec<f32> {
        (0..count)
            .map(|_| {
                let sum: f32 = (0..12).map(|_| self.unit()).sum();
                let value = (sum - 6.0) * deviation;
                if value == 0.0 { deviation } else { value }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use formats::gguf::Gguf;

    use super::*;

    #[test]
    fn tiny_file_has_the_tiny_configuration() {
        for dtype in [
            GgmlType::F32,
            GgmlType::F16,
            GgmlType::Q8_0,
            GgmlType::Q4_0,
            GgmlType::Q4_1,
        ] {
            let bytes = tiny_gguf_as(7, dtype);
            assert_eq!(
                bytes,
                tiny_gguf_as(7, dtype),
                "the same seed, the same file"
            );
            assert_ne!(bytes, tiny_gguf_as(8, dtype), "another seed, another file");
            let gguf = Gguf::parse(Arc::new(bytes), "tiny").unwrap();
            assert_eq!(ModelConfig::from_gguf(&gguf).unwrap(), tiny_config());
            let embedding = gguf.tensor("token_embd.weight").unwrap();
            assert_eq!(embedding.dtype, dtype);
            assert_eq!(embedding.dims, [64, VOCAB_SIZE as u64]);
            assert_eq!(
                gguf.get_str_array("tokenizer.ggml.tokens")
                    .unwrap()
                    .unwrap()
                    .len(),
                VOCAB_SIZE
            );
        }
    }

    #[test]
    fn bytes_have_distinct_characters() {
        let mut seen: Vec<char> = (0..=255).map(byte_char).collect();
        assert_eq!((byte_char(b' '), byte_char(b'\n')), ('Ġ', 'Ċ'));
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 256);
    }

    #[test]
    fn tiny_adapter_fits_and_covers_every_linear() {
        let config = tiny_config();
        let adapter = tiny_adapter(1, &config, 4, 2.0);
        adapter.check(&config).unwrap();
        assert_eq!(adapter.pairs.len(), config.layers * Module::ALL.len());
        for pair in &adapter.pairs {
            assert!(pair.a.iter().chain(&pair.b).all(|value| *value != 0.0));
            assert_eq!(pair.scale, 2.0);
        }
        assert_eq!(adapter, tiny_adapter(1, &config, 4, 2.0));
        assert_ne!(adapter, tiny_adapter(2, &config, 4, 2.0));
        let folder = std::env::temp_dir().join(format!("tiny-adapter-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        adapter.write(&folder, Dtype::F32, "tiny").unwrap();
        let read = Adapter::read(&folder).unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(read.pairs, adapter.pairs);
    }
}
