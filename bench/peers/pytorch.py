#!/usr/bin/env python3
"""Measures transformers and PEFT with the same base and adapters, in bfloat16: prefill, decode, and eight clients with one
tone each, served in PEFT's two modes: a lock and set_adapter, and one batch with adapter_names.

Needs: pip install torch transformers peft gguf safetensors
    python bench/peers/pytorch.py BASE.gguf [--personas DIR] [--clients 8] [--prompt 128] [--new 64]

Prints JSON: tokens per second, time to first token and resident memory.
"""

import argparse
import json
import os
import sys
import threading
import time

import torch

sys.path.insert(0, os.path.dirname(__file__))
from base_to_hf import load


def resident():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmRSS"))


def prompt(tokens, seed):
    return torch.tensor([(seed * 7919 + i * 2654435761) % 49000 + 100 for i in range(tokens)])


def decode(model, rows, past, new, **more):
    """Seconds for the prefill, and for `new` tokens after it."""
    tokens = torch.stack([prompt(past, row) for row in range(rows)])
    times = [time.perf_counter()]
    out = model(tokens, use_cache=True, logits_to_keep=1, **more)
    times.append(time.perf_counter())
    for _ in range(new):
        last = out.logits[:, -1].argmax(-1, keepdim=True)
        out = model(last, past_key_values=out.past_key_values, use_cache=True, **more)
    times.append(time.perf_counter())
    return times[1] - times[0], times[2] - times[1]


def with_lock(model, names, args):
    """Each client is a thread; the one with the lock sets its adapter and answers."""
    lock, ttft = threading.Lock(), []

    def client(name):
        came = time.perf_counter()
        with lock:
            model.set_adapter(name)
            with torch.no_grad():
                waited = time.perf_counter() - came
                first, _ = decode(model, 1, args.prompt, args.new - 1)
                ttft.append(waited + first)

    started = time.perf_counter()
    threads = [threading.Thread(target=client, args=(names[i % len(names)],)) for i in range(args.clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - started, sorted(ttft)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("base")
    p.add_argument("--personas", help="a folder of personas; default: no adapters")
    p.add_argument("--clients", type=int, default=8)
    p.add_argument("--prompt", type=int, default=128)
    p.add_argument("--new", type=int, default=64)
    p.add_argument("--threads", type=int, default=os.cpu_count())
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    model = load(args.base).to(torch.bfloat16)
    figures = {"torch": torch.__version__, "threads": args.threads}
    with torch.no_grad():
        decode(model, 1, 512, 1)
        first, _ = decode(model, 1, 512, 0)
        figures["prefill_512"] = 512 / first
        for rows in (1, 8):
            _, rest = decode(model, rows, args.prompt, 32)
            figures[f"decode_{rows}"] = rows * 32 / rest
    if args.personas:
        from peft import PeftModel
        names = sorted(os.listdir(args.personas))[: args.clients]
        folder = lambda name: os.path.join(args.personas, name, "adapter")
        started = time.perf_counter()
        model = PeftModel.from_pretrained(model, folder(names[0]), adapter_name=names[0], torch_dtype=torch.bfloat16)
        for name in names[1:]:
            model.load_adapter(folder(name), adapter_name=name, torch_dtype=torch.bfloat16)
        figures["load_adapter_ms"] = 1e3 * (time.perf_counter() - started) / len(names)
        model = model.to(torch.bfloat16).eval()
        switch = []
        for name in names * 2:
            started = time.perf_counter()
            model.set_adapter(name)
            switch.append(1e3 * (time.perf_counter() - started))
        figures["set_adapter_ms"] = sorted(switch)[len(switch) // 2]
        total = args.clients * (args.prompt + args.new)
        seconds, ttft = with_lock(model, names, args)
        figures["lock"] = {"tokens_per_s": total / seconds, "new_tokens_per_s": args.clients * args.new / seconds,
                           "ttft_p95_ms": 1e3 * ttft[min(len(ttft) - 1, int(0.95 * len(ttft)))]}
        with torch.no_grad():
            rows = [names[i % len(names)] for i in range(args.clients)]
            first, rest = decode(model, args.clients, args.prompt, args.new - 1, adapter_names=rows)
        figures["adapter_names"] = {"tokens_per_s": total / (first + rest),
                                    "new_tokens_per_s": args.clients * args.new / (first + rest), "ttft_p95_ms": 1e3 * first}
    figures["resident_bytes"] = resident()
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
