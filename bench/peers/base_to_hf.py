"""Converts a GGUF of the Llama architecture (the demo base) to float32 and loads it as a Hugging Face model.

Needs: pip install torch transformers gguf
    python bench/peers/base_to_hf.py BASE.gguf OUT_DIR
"""

import re
import sys

import gguf
import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER_NAMES = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}


def field(reader, key):
    value = reader.fields[key]
    return value.parts[value.data[0]][0].item()


def half_split(weight, heads):
    """Rows 2i, 2i+1 of a head in the file are rows i, i + head_dim/2 in Hugging Face's layout."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def load(path):
    """(model in float32, tensors by Hugging Face name)"""
    reader = gguf.GGUFReader(path)
    get = lambda key: field(reader, "llama." + key)
    heads, kv_heads = get("attention.head_count"), get("attention.head_count_kv")
    tensors = {}
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        layer = re.fullmatch(r"blk\.(\d+)\.(.+)", tensor.name)
        if layer:
            name = f"model.layers.{layer[1]}.{LAYER_NAMES[layer[2]]}"
            if layer[2] == "attn_q.weight":
                values = half_split(values, heads)
            if layer[2] == "attn_k.weight":
                values = half_split(values, kv_heads)
        elif tensor.name in NAMES:
            name = NAMES[tensor.name]
        else:
            continue
        tensors[name] = torch.from_numpy(np.ascontiguousarray(values))
    config = LlamaConfig(
        hidden_size=get("embedding_length"),
        intermediate_size=get("feed_forward_length"),
        num_hidden_layers=get("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=tensors["model.embed_tokens.weight"].shape[0],
        max_position_embeddings=get("context_length"),
        rope_theta=get("rope.freq_base"),
        rope_parameters={"rope_type": "default", "rope_theta": get("rope.freq_base")},
        rms_norm_eps=get("attention.layer_norm_rms_epsilon"),
        tie_word_embeddings="lm_head.weight" not in tensors,
        torch_dtype="float32",
    )
    model = LlamaForCausalLM(config).float().eval()
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    model.tie_weights()
    return model


if __name__ == "__main__":
    load(sys.argv[1]).save_pretrained(sys.argv[2])
