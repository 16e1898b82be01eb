"""Trains a small Llama from scratch and writes it as a Hugging Face folder of float32 weights: a real float model, with a
meaningful perplexity, for the table of precisions in docs/bases.md, since no published float checkpoint was available.

It reads Python's standard library, source and docstrings as installed on this machine; every 40th file is held out and
written to OUT_DIR/held_out.txt. The tokenizer is a byte-level BPE of 2048 tokens, trained on the same files.

Needs: pip install torch transformers tokenizers
    python bench/peers/small_float.py OUT_DIR
"""

import argparse
import json
import pathlib
import sysconfig
import time

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCAB, CONTEXT, BATCH = 2048, 256, 8
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def corpus():
    """(text to train on, text held out)"""
    root = pathlib.Path(sysconfig.get_paths()["stdlib"])
    skipped = {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "__pycache__"}
    files = sorted(path for path in root.rglob("*.py") if not skipped & set(path.parts))
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in files]
    train = "\n".join(text for i, text in enumerate(texts) if i % 40)
    return train, "\n".join(texts[::40])


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("out", type=pathlib.Path)
    p.add_argument("--steps", type=int, default=200)
    p.add_argument("--threads", type=int, default=1)
    a = p.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(1)
    torch.set_num_threads(a.threads)

    train, held_out = corpus()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator([train], trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=special, initial_alphabet=alphabet, show_progress=False))
    ids = torch.tensor(tokenizer.encode(train).ids)
    unseen = torch.tensor(tokenizer.encode(held_out).ids)
    print(f"{len(train) / 1e6:.1f} MB, {len(ids):,} tokens to train on, {len(unseen):,} held out", flush=True)

    config = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=192, intermediate_size=512, num_hidden_layers=4, num_attention_heads=6,
        num_key_value_heads=3, head_dim=32, max_position_embeddings=CONTEXT, rms_norm_eps=1e-5, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=1, eos_token_id=2, pad_token_id=None)
    model = transformers.LlamaForCausalLM(config)
    print(f"{model.num_parameters():,} weights", flush=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.1, betas=(0.9, 0.95))
    began = time.process_time()
    for step in range(a.steps):
        starts = torch.randint(len(ids) - CONTEXT, (BATCH,))
        batch = torch.stack([ids[s : s + CONTEXT] for s in starts])
        # Warm-up, then down in a line to nothing.
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, (step + 1) / 50) * (1.0 - step / a.steps)
        loss = model(batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % 50 == 0:
            print(f"step {step + 1}: loss {loss.item():.3f}, {time.process_time() - began:.0f} s of CPU time", flush=True)

    with torch.no_grad():
        windows = unseen[: len(unseen) // CONTEXT * CONTEXT].view(-1, CONTEXT)[:32]
        loss = model(windows, labels=windows).loss.item()
    print(f"{a.steps * BATCH * CONTEXT:,} tokens read; loss on {windows.numel():,} held-out tokens {loss:.4f}, perplexity {2.718281828**loss:.2f}")
    model.save_pretrained(a.out)
    tokenizer.save(str(a.out / "tokenizer.json"))
    (a.out / "tokenizer_config.json").write_text(json.dumps(
        {"bos_token": special[1], "eos_token": special[2], "chat_template": CHAT}, indent=1))
    (a.out / "held_out.txt").write_text(held_out, encoding="utf-8")


if __name__ == "__main__":
    main()
