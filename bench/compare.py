#!/usr/bin/env python3
"""Compares Lory with llama.cpp and PEFT on this machine. Each round runs every system once, one after the other; the table has
the medians of the rounds. Absolute figures drift with the machine, so compare the ratios.

    cargo build --release
    bench/make_personas.py personas/customer WORK/personas 8
    python bench/peers/llama_cpp.py WORK BASE.gguf WORK/personas/*
    python bench/compare.py WORK BASE.gguf --out bench/runs/NAME

Writes NAME.json with every figure and NAME.md with the table. --torch PYTHON adds PyTorch and PEFT, run with that
interpreter (bench/peers/pytorch.py lists what it needs). Close all other programs first.
"""

import argparse
import datetime
import json
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
CLIENTS, PROMPT, NEW = 8, 128, 64


def output(*command, **more):
    """The output of a command; exits if the command fails."""
    process = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)
    if process.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{process.stderr.decode(errors='replace')[-2000:]}")
    return process.stdout


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    """A server process: entering the block waits for a 200 at `ready`, leaving it ends the process."""

    def __init__(self, command, port, ready):
        self.url, self.ready = f"http://127.0.0.1:{port}", ready
        self.log = tempfile.TemporaryFile()
        self.process = subprocess.Popen([str(part) for part in command], stdout=self.log, stderr=self.log)

    def __enter__(self):
        for _ in range(600):
            if self.process.poll() is not None:
                self.log.seek(0)
                sys.exit(f"the server ended: {self.log.read()[-2000:].decode(errors='replace')}")
            try:
                urllib.request.urlopen(self.url + self.ready, timeout=2).read()
                return self
            except OSError:
                time.sleep(0.1)
        sys.exit(f"no response from {self.url}{self.ready} after a minute")

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def resident(self):
        with open(f"/proc/{self.process.pid}/status") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmRSS"))


def load(url, *more):
    """The figures of one run of load.py."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        output(sys.executable, HERE / "load.py", "--url", url, "--clients", CLIENTS, "--prompt", PROMPT, "--new", NEW,
               "--json", file.name, *more)
        figures = json.load(open(file.name))
    return {"new_tokens_per_s": figures["new_tokens_per_s"], "ttft_p95_ms": figures["ms"]["ttft"]["p95"],
            "gap_p95_ms": figures["ms"]["gap"]["p95"]}


def lory_kernels(args):
    report = json.loads(output(args.lory, "bench", "--base", args.base, "--rows", "1,8", "--adapters", "0,8", "--rounds", 1,
                               "--threads", args.threads, "--json"))
    figures = {}
    for result in report["results"]:
        tones = "_8_tones" if result.get("adapters") else ""
        if result["name"] == "prefill":
            figures["prefill_512" + tones] = result["tokens_per_s"]
        elif result["name"] == "decode":
            figures[f"decode_{result['rows']}{tones}"] = result["tokens_per_s"]
        else:
            figures["load_adapter_ms"] = result["ms"]
    return figures


def llama_kernels(args, model):
    bench = args.work / "bin/llama-bench"
    common = ["-m", model, "-t", args.threads, "-r", 1, "-o", "json"]
    prefill = json.loads(output(bench, *common, "-p", 512, "-n", 0))
    decode = json.loads(output(bench, *common, "-p", 0, "-n", NEW, "-d", PROMPT))
    batched = output(args.work / "bin/llama-batched-bench", "-m", model, "-t", args.threads, "-c", 2048, "-npp", PROMPT,
                     "-ntg", NEW, "-npl", 8, "--output-format", "jsonl")
    rows = [json.loads(line) for line in batched.splitlines() if line.startswith(b"{")]
    return {"prefill_512": prefill[0]["avg_ts"], "decode_1": decode[0]["avg_ts"], "decode_8": rows[0]["speed_tg"]}


def lory_serving(args):
    port, figures = free_port(), {}
    command = [args.lory, "serve", "--base", args.base, "--personas", args.work / "personas", "--port", port]
    names = ",".join(args.names)
    with Server(command, port, "/ready") as server:
        base = json.load(urllib.request.urlopen(server.url + "/v1/models"))["data"][0]["id"]
        for name in args.names:
            body = json.dumps({"model": name, "prompt": "Hello", "max_tokens": 1}).encode()
            request = urllib.request.Request(server.url + "/v1/completions", body, {"Content-Type": "application/json"})
            urllib.request.urlopen(request).read()
        figures["resident_idle"] = server.resident()
        common = ["--base", base, "--requests", args.requests, "--personas", names]
        figures["tones"] = load(server.url, *common, "--tones", "one-each")
        figures["resident"] = server.resident()
        figures["base"] = load(server.url, *common, "--tones", "none", "--seed", 2)
    return figures


def llama_serving(args, model):
    port, figures = free_port(), {}
    loras = sorted(args.work.glob("lora*.gguf"))[:CLIENTS]
    command = [args.work / "bin/llama-server", "-m", model, "-t", args.threads, "-c", CLIENTS * 256, "-np", CLIENTS,
               "--port", port]
    # Slots share batches if no adapter is loaded; with adapters loaded, requests with different ones do not.
    with Server(command, port, "/health") as server:
        figures["base"] = load(server.url, "--api", "llama", "--requests", args.requests, "--tones", "none", "--seed", 2)
    for lora in loras:
        command += ["--lora", lora]
    with Server(command + ["--lora-init-without-apply"], port, "/health") as server:
        figures["resident_idle"] = server.resident()
        figures["tones"] = load(server.url, "--api", "llama", "--requests", args.requests, "--tones", "one-each",
                                "--personas", ",".join(str(i) for i in range(len(loras))))
        figures["resident"] = server.resident()
    return figures


def contenders(args):
    found = {"lory": lambda: lory_kernels(args) | lory_serving(args)}
    for name, model in (("llama.cpp Q4_0", args.work / "q4_0.gguf"), ("llama.cpp Q4_1", args.base)):
        if name.endswith("0") or args.same_file:
            found[name] = lambda model=model: llama_kernels(args, model) | llama_serving(args, model)
    return found


def torch_figures(args):
    figures = json.loads(output(args.torch, HERE / "peers/pytorch.py", args.base, "--personas", args.work / "personas",
                                "--threads", args.threads))
    figures["tones"] = figures["adapter_names"]
    figures["resident"] = figures["resident_bytes"]
    return figures


def at(figures, path):
    for key in path.split("/"):
        figures = figures.get(key, {}) if isinstance(figures, dict) else {}
    return figures if isinstance(figures, (int, float)) else None


ROWS = [
    ("prefill 512, tok/s", "prefill_512", 1, True),
    ("decode, 1 stream, tok/s", "decode_1", 1, True),
    ("decode, 8 rows, tok/s", "decode_8", 1, True),
    ("decode, 8 rows of 8 tones, tok/s", "decode_8_8_tones", 1, True),
    ("8 clients, a tone each: new tok/s", "tones/new_tokens_per_s", 1, True),
    ("the same: TTFT p95, ms", "tones/ttft_p95_ms", 1, False),
    ("8 clients, no tones: new tok/s", "base/new_tokens_per_s", 1, True),
    ("resident, 8 adapters loaded, MB", "resident_idle", 1e-6, False),
    ("resident after the load, MB", "resident", 1e-6, False),
    ("load an adapter, ms", "load_adapter_ms", 1, False),
    ("PEFT with a lock and set_adapter: new tok/s", "lock/new_tokens_per_s", 1, True),
]


def table(rounds):
    names = list(dict.fromkeys(name for one in rounds for name in one))
    medians = {}
    for name in names:
        for _, path, _, _ in ROWS:
            values = [at(one[name], path) for one in rounds if name in one]
            values = [value for value in values if value is not None]
            if values:
                medians[name, path] = statistics.median(values)
    lines = ["| | " + " | ".join(names) + " | Lory to llama.cpp Q4_0 |", "|---" * (len(names) + 2) + "|"]
    for words, path, factor, more_is_better in ROWS:
        if not any((name, path) in medians for name in names):
            continue
        cells = [f"{medians[name, path] * factor:,.1f}" if (name, path) in medians else "" for name in names]
        ours, theirs = medians.get(("lory", path)), medians.get(("llama.cpp Q4_0", path))
        ratio = ""
        if ours and theirs:
            ratio = f"{ours / theirs:.2f}x" if more_is_better else f"1/{theirs / ours:.1f}"
        lines.append(f"| {words} | " + " | ".join(cells) + f" | {ratio} |")
    tones, base = medians.get(("lory", "tones/new_tokens_per_s")), medians.get(("lory", "base/new_tokens_per_s"))
    if tones and base:
        lines.append(f"\nEight tones cost Lory {100 * (1 - tones / base):.0f} % of the throughput without tones.")
    return "\n".join(lines) + "\n"


def machine(args):
    with open("/proc/cpuinfo") as file:
        names = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
    commit = output("git", "-C", HERE, "describe", "--always", "--dirty").decode().strip()
    return {"cpu": names[0] if names else platform.processor(), "cores": os.cpu_count(), "threads": args.threads,
            "commit": commit, "date": datetime.date.today().isoformat()}


def run_rounds(args, found, of_rounds):
    """Runs every system of `found` once in each round, prints the table that `of_rounds` makes, and writes it to `--out`."""
    rounds = []
    for number in range(args.rounds):
        figures = {}
        # A different one is first in each round.
        for name in sorted(found, key=lambda name: (list(found).index(name) + number) % len(found)):
            print(f"round {number + 1} of {args.rounds}: {name}", file=sys.stderr, flush=True)
            figures[name] = found[name]()
        rounds.append({name: figures[name] for name in found})
        if args.out:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            about = machine(args)
            args.out.with_suffix(".json").write_text(json.dumps({"machine": about, "rounds": rounds}, indent=1) + "\n")
            words = f"{about['cpu']}, {about['threads']} threads, {about['date']}, commit {about['commit']}; medians of " \
                    f"{len(rounds)} rounds\n\n"
            args.out.with_suffix(".md").write_text(words + of_rounds(rounds))
    print(of_rounds(rounds))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("work", type=Path, help="the folder that peers/llama_cpp.py filled, with personas/")
    p.add_argument("base", type=Path)
    p.add_argument("--lory", type=Path, default=HERE.parent / "target/release/lory")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--requests", type=int, default=2, help="requests of each client in each round")
    p.add_argument("--threads", type=int, default=os.cpu_count())
    p.add_argument("--same-file", action="store_true", help="also run llama.cpp on the base's own file")
    p.add_argument("--torch", type=Path, help="a Python with torch, transformers and peft")
    p.add_argument("--out", type=Path)
    args = p.parse_args()
    args.names = sorted(os.listdir(args.work / "personas"))[:CLIENTS]
    if not shutil.which(args.lory):
        p.error(f"there is no {args.lory}; run cargo build --release")
    if len(args.names) < CLIENTS:
        p.error(f"{args.work}/personas has fewer than {CLIENTS} personas; create them with make_personas.py")
    found = contenders(args)
    if args.torch:
        found["PyTorch bf16 / PEFT"] = lambda: torch_figures(args)
    run_rounds(args, found, table)


if __name__ == "__main__":
    main()
