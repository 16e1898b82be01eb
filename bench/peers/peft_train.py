#!/usr/bin/env python3
"""Trains with PEFT on the same rows: LoRA of rank 16 on all seven linear layers, AdamW, fixed-length rows, in float32, in bf16
weights or in bf16 autocast.

Needs: pip install torch transformers peft gguf safetensors
    python bench/peers/peft_train.py BASE.gguf ROWS.json --precision f32|bf16|autocast [--steps 12] [--batch 4]

ROWS.json is a list of token lists of one length (bench/compare_train.py writes it). Prints JSON: tokens per second after the
second step, peak resident memory of this process while it trained, and the loss of each step.
"""

import argparse
import contextlib
import json
import os
import sys
import threading
import time

import torch
from peft import LoraConfig, get_peft_model

sys.path.insert(0, os.path.dirname(__file__))
from base_to_hf import load

MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Peak:
    """Peak resident memory from here on, excluding the load of the model."""

    def __enter__(self):
        self.bytes, self.ends = 0, threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def watch(self):
        while not self.ends.wait(0.02):
            with open("/proc/self/status") as file:
                self.bytes = max(self.bytes, next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmRSS")))

    def __exit__(self, *_):
        self.ends.set()
        self.thread.join()


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("base")
    p.add_argument("rows")
    p.add_argument("--precision", choices=["f32", "bf16", "autocast"], required=True)
    p.add_argument("--steps", type=int, default=12)
    p.add_argument("--batch", type=int, default=4)
    p.add_argument("--lr", type=float, default=1e-3)
    p.add_argument("--threads", type=int, default=os.cpu_count())
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    rows = torch.tensor(json.load(open(args.rows)))
    model = load(args.base)
    if args.precision == "bf16":
        model = model.to(torch.bfloat16)
    model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules=MODULES, task_type="CAUSAL_LM"))
    model.train()
    context = torch.autocast("cpu", dtype=torch.bfloat16) if args.precision == "autocast" else contextlib.nullcontext()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=args.lr, weight_decay=0.0)
    losses, started = [], 0.0
    with Peak() as peak:
        for step in range(args.steps):
            if step == 2:
                started = time.perf_counter()
            batch = torch.stack([rows[(step * args.batch + i) % len(rows)] for i in range(args.batch)])
            with context:
                loss = model(input_ids=batch, labels=batch).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
        seconds = time.perf_counter() - started
    tokens = (args.steps - 2) * args.batch * rows.shape[1]
    print(json.dumps({"torch": torch.__version__, "tokens_per_s": tokens / seconds, "peak_bytes": peak.bytes, "losses": losses}))


if __name__ == "__main__":
    main()
