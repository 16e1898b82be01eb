#!/usr/bin/env python3
"""Writes a Hugging Face folder of the Llama architecture with random bf16 weights, in shards, to try a size whose real weights
are not available. Its answers are noise. Only the Python standard library is needed.

    bench/random_folder.py OUT_DIR                   # the shape of Llama 3.1 8B, 16 GB
    bench/random_folder.py OUT_DIR --layers 4 --hidden 512 --ffn 1536 --heads 8 --kv-heads 4 --vocab 4096
"""

import argparse
import array
import json
import os
import random
import struct

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


def byte_alphabet():
    """The characters that represent bytes in byte-level vocabularies."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    return [chr(b) for b in plain] + [chr(256 + i) for i in range(len(others))]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("out")
    for name, value in (("layers", 32), ("hidden", 4096), ("ffn", 14336), ("heads", 32), ("kv-heads", 8), ("vocab", 128256),
                        ("context", 131072), ("shard-mb", 4000), ("seed", 1)):
        p.add_argument(f"--{name}", type=int, default=value)
    a = p.parse_args()
    os.makedirs(a.out, exist_ok=True)
    head_dim = a.hidden // a.heads
    kv = a.kv_heads * head_dim

    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    words = byte_alphabet() + ["he"]
    special += [f"<|{i}|>" for i in range(a.vocab - len(words) - len(special))]
    first = len(words)
    tokenizer = {
        "version": "1.0",
        "added_tokens": [
            {"id": first + i, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
             "special": True} for i, text in enumerate(special)],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": LLAMA3}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}]},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": {word: i for i, word in enumerate(words)}, "merges": [["h", "e"]],
                  "ignore_merges": True},
    }
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": a.hidden,
        "intermediate_size": a.ffn, "num_hidden_layers": a.layers, "num_attention_heads": a.heads,
        "num_key_value_heads": a.kv_heads, "max_position_embeddings": a.context, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
        "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 8192, "rope_type": "llama3"},
        "tie_word_embeddings": False, "torch_dtype": "bfloat16", "vocab_size": a.vocab,
        "bos_token_id": first, "eos_token_id": [first + 1, first + 4],
    }
    texts = {
        "config.json": json.dumps(config, indent=2),
        "generation_config.json": json.dumps({"bos_token_id": first, "eos_token_id": [first + 1, first + 4]}),
        "tokenizer.json": json.dumps(tokenizer, ensure_ascii=False),
        "tokenizer_config.json": json.dumps({"bos_token": special[0], "eos_token": special[4], "chat_template": CHAT}),
    }
    for name, text in texts.items():
        with open(os.path.join(a.out, name), "w", encoding="utf-8") as file:
            file.write(text)

    tensors = [("model.embed_tokens.weight", (a.vocab, a.hidden))]
    for i in range(a.layers):
        tensors += [(f"model.layers.{i}.{name}.weight", shape) for name, shape in (
            ("input_layernorm", (a.hidden,)), ("self_attn.q_proj", (a.hidden, a.hidden)), ("self_attn.k_proj", (kv, a.hidden)),
            ("self_attn.v_proj", (kv, a.hidden)), ("self_attn.o_proj", (a.hidden, a.hidden)),
            ("post_attention_layernorm", (a.hidden,)), ("mlp.gate_proj", (a.ffn, a.hidden)), ("mlp.up_proj", (a.ffn, a.hidden)),
            ("mlp.down_proj", (a.hidden, a.ffn)))]
    tensors += [("model.norm.weight", (a.hidden,)), ("lm_head.weight", (a.vocab, a.hidden))]

    def size(shape):
        return 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)

    shards, room = [[]], a.shard_mb * 10**6
    for tensor in tensors:
        if shards[-1] and sum(size(shape) for _, shape in shards[-1]) + size(tensor[1]) > room:
            shards.append([])
        shards[-1].append(tensor)

    # Normal weights, scaled so that sums of `hidden` products stay near 1. They come from a pool, from a new offset for every piece.
    rng = random.Random(a.seed)
    pool = array.array("H", (
        struct.unpack("<I", struct.pack("<f", rng.gauss(0, a.hidden**-0.5)))[0] >> 16 for _ in range(2_000_003))).tobytes()
    one = struct.pack("<H", 0x3F80)
    names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    where = {}
    for file_name, shard in zip(names, shards):
        header, offset = {"__metadata__": {"format": "pt"}}, 0
        for name, shape in shard:
            header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + size(shape)]}
            offset += size(shape)
            where[name] = file_name
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(os.path.join(a.out, file_name), "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for _, shape in shard:
                left = size(shape)
                if len(shape) == 1:
                    file.write(one * shape[0])
                    left = 0
                while left:
                    start = 2 * rng.randrange(1_000_000)
                    part = pool[start : start + left]
                    file.write(part)
                    left -= len(part)
    with open(os.path.join(a.out, "model.safetensors.index.json"), "w", encoding="utf-8") as file:
        json.dump({"metadata": {"total_size": sum(size(s) for _, s in tensors)}, "weight_map": where}, file)


if __name__ == "__main__":
    main()
