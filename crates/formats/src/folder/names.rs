//! The names of tensors in GGUF files and in Hugging Face's models.

use crate::config::ModelConfig;

/// GGUF's and Hugging Face's names of the tensors of a layer.
const OF_A_LAYER: [(&str, &str); 14] = [
    ("attn_norm.weight", "input_layernorm.weight"),
    ("attn_q.weight", "self_attn.q_proj.weight"),
    ("attn_k.weight", "self_attn.k_proj.weight"),
    ("attn_v.weight", "self_attn.v_proj.weight"),
    ("attn_q.bias", "self_attn.q_proj.bias"),
    ("attn_k.bias", "self_attn.k_proj.bias"),
    ("attn_v.bias", "self_attn.v_proj.bias"),
    ("attn_q_norm.weight", "self_attn.q_norm.weight"),
    ("attn_k_norm.weight", "self_attn.k_norm.weight"),
    ("attn_output.weight", "self_attn.o_proj.weight"),
    ("ffn_norm.weight", "post_attention_layernorm.weight"),
    ("ffn_gate.weight", "mlp.gate_proj.weight"),
    ("ffn_up.weight", "mlp.up_proj.weight"),
    ("ffn_down.weight", "mlp.down_proj.weight"),
];

/// GGUF's and Hugging Face's names of the other tensors.
const OF_THE_MODEL: [(&str, &str); 3] = [
    ("token_embd.weight", "model.embed_tokens.weight"),
    ("output_norm.weight", "model.norm.weight"),
    ("output.weight", "lm_head.weight"),
];

/// Hugging Face's name of the tensor with the GGUF name `name`.
pub(super) fn hugging_face(name: &str) -> Option<String> {
    if let Some((_, own)) = OF_THE_MODEL.iter().find(|row| row.0 == name) {
        return Some((*own).to_owned());
    }
    let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    let (_, own) = OF_A_LAYER.iter().find(|row| row.0 == rest)?;
    Some(format!("model.layers.{layer}.{own}"))
}

/// The GGUF name of the tensor with Hugging Face's name `name`.
pub(crate) fn gguf_name(name: &str) -> Option<String> {
    if let Some((gguf, _)) = OF_THE_MODEL.iter().find(|row| row.1 == name) {
        return Some((*gguf).to_owned());
    }
    let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let (gguf, _) = OF_A_LAYER.iter().find(|row| row.1 == rest)?;
    layer.parse::<u32>().ok()?;
    Some(format!("blk.{layer}.{gguf}"))
}

/// Whether a decoder of this configuration uses the tensor, or may ignore it.
pub(super) fn is_used(name: &str, config: &ModelConfig) -> bool {
    // Tables of rotary angles, which the decoder computes itself.
    if name.ends_with("rotary_emb.inv_freq") {
        return true;
    }
    if OF_THE_MODEL.iter().any(|row| row.1 == name) {
        return true;
    }
    let Some((layer, rest)) = name
        .strip_prefix("model.layers.")
        .and_then(|name| name.split_once('.'))
    else {
        return false;
    };
    let row = OF_A_LAYER.iter().find(|row| row.1 == rest);
    let used = match row {
        Some((gguf, _)) if gguf.ends_with(".bias") => config.qkv_bias,
        Some((gguf, _)) if gguf.ends_with("_norm.weight") && gguf.contains("_q_") => config.qk_norm,
        Some((gguf, _)) if gguf.ends_with("_norm.weight") && gguf.contains("_k_") => config.qk_norm,
        Some(_) => true,
        None => false,
    };
    used && layer
        .parse::<usize>()
        .is_ok_and(|layer| layer < config.layers)
}
