#!/usr/bin/env python3
"""Writes a GGUF of the Llama architecture with random Q4_0 weights, to measure a size whose real weights are not
available. Its answers are noise. Only the Python standard library is needed.

    bench/random_gguf.py OUT.gguf                    # the shape of Llama 3.1 8B, 4.5 GB
    bench/random_gguf.py OUT.gguf --layers 4 --hidden 512 --ffn 1536 --heads 8 --kv-heads 4 --vocab 4096
"""

import argparse
import random
import struct

Q4_0, F32 = 2, 0
U32, FLOAT, STRING, ARRAY, I32 = 4, 6, 8, 9, 5
ALIGNMENT = 32


def byte_alphabet():
    """The characters that represent bytes in byte-level vocabularies."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    return [chr(b) for b in plain] + [chr(256 + i) for i in range(len(others))]


def text(s):
    data = s.encode()
    return struct.pack("<Q", len(data)) + data


def entry(key, kind, value):
    head = text(key) + struct.pack("<I", kind)
    if kind == STRING:
        return head + text(value)
    if kind == ARRAY:
        item, values = value
        pack = text if item == STRING else lambda v: struct.pack("<i", v)
        return head + struct.pack("<IQ", item, len(values)) + b"".join(map(pack, values))
    return head + struct.pack("<f" if kind == FLOAT else "<I", value)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("out")
    for name, value in (("layers", 32), ("hidden", 4096), ("ffn", 14336), ("heads", 32), ("kv-heads", 8), ("vocab", 128256),
                        ("context", 8192), ("seed", 1)):
        p.add_argument(f"--{name}", type=int, default=value)
    a = p.parse_args()
    head_dim = a.hidden // a.heads
    words = byte_alphabet() + ["he"]
    words += [f"<|{i}|>" for i in range(len(words), a.vocab)]
    kinds = [1] * 257 + [3] * (a.vocab - 257)
    entries = [
        entry("general.architecture", STRING, "llama"), entry("general.name", STRING, "random"),
        entry("llama.block_count", U32, a.layers), entry("llama.context_length", U32, a.context),
        entry("llama.embedding_length", U32, a.hidden), entry("llama.feed_forward_length", U32, a.ffn),
        entry("llama.attention.head_count", U32, a.heads), entry("llama.attention.head_count_kv", U32, a.kv_heads),
        entry("llama.attention.layer_norm_rms_epsilon", FLOAT, 1e-5), entry("llama.rope.freq_base", FLOAT, 500000.0),
        entry("llama.rope.dimension_count", U32, head_dim), entry("llama.vocab_size", U32, a.vocab),
        entry("tokenizer.ggml.model", STRING, "gpt2"), entry("tokenizer.ggml.pre", STRING, "llama-bpe"),
        entry("tokenizer.ggml.tokens", ARRAY, (STRING, words)), entry("tokenizer.ggml.token_type", ARRAY, (I32, kinds)),
        entry("tokenizer.ggml.merges", ARRAY, (STRING, ["h e"])),
        entry("tokenizer.ggml.bos_token_id", U32, 257), entry("tokenizer.ggml.eos_token_id", U32, 258),
        entry("tokenizer.chat_template", STRING, "{% for m in messages %}{{ m.content }}{% endfor %}"),
    ]
    tensors = [("token_embd.weight", (a.hidden, a.vocab)), ("output_norm.weight", (a.hidden,)),
               ("output.weight", (a.hidden, a.vocab))]
    for i in range(a.layers):
        kv = a.kv_heads * head_dim
        tensors += [(f"blk.{i}.{name}.weight", shape) for name, shape in (
            ("attn_norm", (a.hidden,)), ("attn_q", (a.hidden, a.hidden)), ("attn_k", (a.hidden, kv)),
            ("attn_v", (a.hidden, kv)), ("attn_output", (a.hidden, a.hidden)), ("ffn_norm", (a.hidden,)),
            ("ffn_gate", (a.hidden, a.ffn)), ("ffn_up", (a.hidden, a.ffn)), ("ffn_down", (a.ffn, a.hidden)))]

    def size(shape):
        return shape[0] * 4 if len(shape) == 1 else shape[0] * shape[1] // 32 * 18

    infos, offset = b"", 0
    for name, shape in tensors:
        infos += text(name) + struct.pack("<I", len(shape)) + b"".join(struct.pack("<Q", n) for n in shape)
        infos += struct.pack("<IQ", F32 if len(shape) == 1 else Q4_0, offset)
        offset += -(-size(shape) // ALIGNMENT) * ALIGNMENT
    # Blocks of a scale and 32 nibbles; sums of `hidden` products then stay near 1.
    rng = random.Random(a.seed)
    scale = struct.pack("<e", 0.2 / a.hidden ** 0.5)
    blocks = b"".join(scale + rng.randbytes(16) for _ in range(50021))
    with open(a.out, "wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(entries)) + b"".join(entries) + infos)
        file.write(b"\0" * (-file.tell() % ALIGNMENT))
        for _, shape in tensors:
            left = size(shape)
            if len(shape) == 1:
                file.write(struct.pack("<f", 1.0) * shape[0])
                left = 0
            while left:
                start = rng.randrange(1000) * 18
                part = blocks[start : start + left]
                file.write(part)
                left -= len(part)
            file.write(b"\0" * (-file.tell() % ALIGNMENT))


if __name__ == "__main__":
    main()
