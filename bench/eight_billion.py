#!/usr/bin/env python3
"""Runs a base of 8 billion random weights in 4 bits and compares the plan with the measured memory; times starts and a mixed batch.

    cargo build --release
    bench/eight_billion.py WORK --out bench/runs/NAME            # 16 GB for the folder, 5.5 GB for the quant cache; both are removed

Writes a Hugging Face folder of Llama 3.1 8B's shape (random_folder.py: sharded bf16) and three random adapters of rank 8, reads the
planned peak memory from `lory doctor`, serves with --precision q4 and compares the measured peak (VmHWM) with the plan; it sends requests to
the three tones, a blend and the base at once. Then it starts again from the quant cache and sends the requests one by one: the answers must be the
same, with equal log-probabilities. With --moved it moves the folder and starts a third time. At the end it starts with f32, which must be
refused before memory is allocated. The answers are noise: the measurement is about memory and time. Needs Linux and only Python's standard library.
"""

import argparse
import array
import concurrent.futures
import json
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

HERE = Path(__file__).parent
TONES = ["alpha", "beta", "gamma"]
LAYERS, HIDDEN, FFN, KV, RANK = 32, 4096, 14336, 1024, 8
MODULES = {"self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (HIDDEN, KV), "self_attn.v_proj": (HIDDEN, KV),
           "self_attn.o_proj": (HIDDEN, HIDDEN), "mlp.gate_proj": (HIDDEN, FFN), "mlp.up_proj": (HIDDEN, FFN),
           "mlp.down_proj": (FFN, HIDDEN)}
PROMPT = "Where is the order that was placed on Monday, and when will it be here?"
MEMORY = ["--kv-memory", "512MiB", "--adapter-memory", "512MiB"]
GIB = 1 << 30


def adapter(folder, seed):
    """A persona with a random adapter in bf16 on all seven linears."""
    (folder / "adapter").mkdir(parents=True, exist_ok=True)
    (folder / "persona.toml").write_text('description = "A random tone"\nversion = 1\n')
    (folder / "adapter/adapter_config.json").write_text(json.dumps({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 2 * RANK, "lora_dropout": 0.0, "bias": "none",
        "base_model_name_or_path": "random", "target_modules": sorted(name.split(".")[1] for name in MODULES)}))
    rng = random.Random(seed)
    pool = array.array("H", (struct.unpack("<I", struct.pack("<f", rng.gauss(0, 0.02)))[0] >> 16
                             for _ in range(200_003))).tobytes()
    header, offset, sizes = {}, 0, []
    for layer in range(LAYERS):
        for name, (inputs, outputs) in MODULES.items():
            for part, shape in (("A", [RANK, inputs]), ("B", [outputs, RANK])):
                size = 2 * shape[0] * shape[1]
                header[f"base_model.model.model.layers.{layer}.{name}.lora_{part}.weight"] = {
                    "dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
                offset += size
                sizes.append(size)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(folder / "adapter/adapter_model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for size in sizes:
            while size:
                start = 2 * rng.randrange(100_000)
                size -= file.write(pool[start : start + size])


class Serving:
    """A running `lory serve`, which was ready after `seconds`."""

    def __init__(self, lory, base, work, env):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.log = open(work / "serve.log", "wb")
        began = time.monotonic()
        self.process = subprocess.Popen(
            [lory, "serve", "--base", base, "--precision", "q4", "--personas", work / "personas", "--port", str(port), *MEMORY],
            env=env, stdout=self.log, stderr=self.log)
        while True:
            if self.process.poll() is not None:
                sys.exit(f"the server ended: {(work / 'serve.log').read_text()[-2000:]}")
            try:
                urllib.request.urlopen(self.url + "/ready", timeout=2).read()
                break
            except OSError:
                time.sleep(0.2)
        self.seconds = time.monotonic() - began

    def ask(self, model, tokens=24):
        """The log-probability of every token of the answer; these differ between tones even if the words are the same."""
        body = json.dumps({"model": model, "prompt": PROMPT, "max_tokens": tokens, "temperature": 0, "ignore_eos": True,
                           "logprobs": 1}).encode()
        request = urllib.request.Request(self.url + "/v1/completions", body, {"Content-Type": "application/json"})
        return tuple(json.load(urllib.request.urlopen(request, timeout=3000))["choices"][0]["logprobs"]["token_logprobs"])

    def counter(self, name):
        text = urllib.request.urlopen(self.url + "/metrics").read().decode()
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name + "_total"))

    def peak(self):
        with open(f"/proc/{self.process.pid}/status") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))

    def end(self):
        peak = self.peak()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)
        self.log.close()
        return peak


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("work", type=Path)
    p.add_argument("--lory", type=Path, default=HERE.parent / "target/release/lory")
    p.add_argument("--out", type=Path, help="NAME: writes NAME.json and NAME.md")
    p.add_argument("--moved", action="store_true", help="move the folder and start a third time")
    p.add_argument("--keep", action="store_true", help="do not remove the folder and the quant cache")
    a = p.parse_args()
    a.work.mkdir(parents=True, exist_ok=True)
    base, moved, home = a.work / "base", a.work / "moved", a.work / "home"
    env = {**os.environ, "LORY_HOME": str(home)}
    if not base.exists():
        if shutil.disk_usage(a.work).free < 24 * GIB:
            sys.exit(f"{a.work}: less than 24 GiB free")
        subprocess.run([sys.executable, HERE / "random_folder.py", base], check=True)
    for seed, name in enumerate(TONES):
        adapter(a.work / "personas" / name, seed)

    doctor = subprocess.run([a.lory, "doctor", "--base", base, "--precision", "q4", *MEMORY, "--json"],
                            env=env, check=True, capture_output=True)
    doctor = json.loads(doctor.stdout)
    rows = {"peak that doctor announces, GiB": doctor["plan"]["peak_bytes"] / GIB,
            "tokens/s that doctor expects of one answer": doctor["probe"]["tokens_per_s"]}

    # The first start quantizes.
    first = Serving(a.lory, base, a.work, env)
    model = json.load(urllib.request.urlopen(first.url + "/v1/models"))["data"][0]["id"]
    asked = [*TONES, "alpha*0.5+beta*0.5", model]
    before = {name: first.counter(name) for name in ("lory_steps", "lory_sampled_tokens")}
    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(len(asked)) as clients:
        together = list(clients.map(first.ask, asked))
    seconds = time.monotonic() - began
    steps, sampled = (first.counter(name) - before[name] for name in before)
    rows |= {"first start (quantizes), s": first.seconds, "five requests at once, s": seconds,
             "tokens a step, at once": sampled / steps, "different answers": len(set(together)),
             "peak of the first start, GiB": first.end() / GIB}

    # The prefix cache is empty here, so the time can be compared with the one above.
    second = Serving(a.lory, base, a.work, env)
    began = time.monotonic()
    alone = [second.ask(name) for name in asked]
    rows |= {"second start (reads what was kept), s": second.seconds, "the same five one by one, s": time.monotonic() - began,
             "answers at once and alone are the same": together == alone,
             "peak of the second start, GiB": second.end() / GIB}

    if a.moved:
        base.rename(moved)
        third = Serving(a.lory, moved, a.work, env)
        rows |= {"start after the folder was moved, s": third.seconds, "answer after it is the same": third.ask(TONES[0]) == alone[0],
                 "peak of that start, GiB": third.end() / GIB}
        moved.rename(base)
    rows["kept files"] = len(list((home / "quantized").glob("*.gguf")))

    # More than the machine has: refused before anything is allocated.
    began = time.monotonic()
    refused = subprocess.Popen([a.lory, "serve", "--base", base, "--precision", "f32", "--kv-memory", "64GiB",
                                "--personas", a.work / "personas", "--port", "0"], env=env, stderr=subprocess.PIPE)
    said = refused.stderr.read().decode()
    _, status, usage = os.wait4(refused.pid, 0)
    rows |= {"f32 with 64 GiB of keys and values: exit code": os.waitstatus_to_exitcode(status),
             "its peak, GiB": usage.ru_maxrss * 1024 / GIB, "refused after, s": time.monotonic() - began}

    lines = ["| | |", "|---|---|"]
    lines += [f"| {name} | {value:.2f} |" if isinstance(value, float) else f"| {name} | {value} |" for name, value in rows.items()]
    print("\n".join(lines) + "\n\n" + said)
    if a.out:
        machine = doctor["machine"]
        a.out.with_suffix(".json").write_text(json.dumps({"machine": machine, "figures": rows, "refused": said}, indent=1) + "\n")
        title = f"# 8 billion random weights in q4: {machine['threads']} threads ({machine['instruction_set']})\n\n"
        a.out.with_suffix(".md").write_text(title + "\n".join(lines) + "\n")
    if not a.keep:
        shutil.rmtree(base)
        shutil.rmtree(home)


if __name__ == "__main__":
    main()
