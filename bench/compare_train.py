#!/usr/bin/env python3
"""Compares training with PEFT on this machine: the same rows of one length, LoRA of rank 16 on all seven linear layers, 4 rows
per step. Each round runs every system once, a different one first; the table has the medians of the rounds.

    cargo build --release
    python bench/compare_train.py WORK BASE.gguf --torch PYTHON --out bench/runs/NAME

WORK is a folder for what the run needs; --torch names a Python with torch, transformers, peft, gguf and safetensors. Writes
NAME.json with every figure and NAME.md with the table. Speeds are of warm steps: Lory's exclude the first step, PEFT's
the first two. Close all other programs first.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import sys
from pathlib import Path

from compare import HERE, output, run_rounds
from load import WORDS

PRECISIONS = ["f32", "bf16", "autocast"]
BATCH = 4


def peak_of(command, **more):
    """The output of a command, and its peak resident memory."""
    script = ("import json, resource, subprocess, sys; p = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE); "
              "print(json.dumps([p.returncode, p.stdout.decode(), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024]))")
    code, printed, peak = json.loads(output(sys.executable, "-c", script, *command, **more))
    if code:
        sys.exit(f"{' '.join(map(str, command))} ended with {code}")
    return printed, peak


def texts(count, words, seed):
    rng = random.Random(seed)
    return [" ".join(rng.choice(WORDS) for _ in range(words)) for _ in range(count)]


def persona(folder, name, rows, table):
    (folder / name).mkdir(parents=True, exist_ok=True)
    with open(folder / name / "train.jsonl", "w") as file:
        file.writelines(json.dumps({"text": row}) + "\n" for row in rows)
    settings = "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items())
    (folder / name / "persona.toml").write_text(f'description = "bench"\nversion = 1\n\n[train]\ndata = "train.jsonl"\n{settings}')


def lory(args, length, adapters):
    """One run over `adapters` personas that share each step's rows: tokens per second, peak memory, losses of the first persona."""
    folder = args.work / "train"
    shutil.rmtree(folder, ignore_errors=True)
    names = [f"a{i}" for i in range(adapters)]
    table = {"max_length": length, "too_long": "truncate", "batch_rows": BATCH // adapters, "max_steps": args.steps, "lr": 1e-3,
             "epochs": 100, "warmup_ratio": 0.0, "schedule": "constant", "shuffle": False, "group_by_length": False,
             "validation_fraction": 0.0, "save_every": 0}
    for i, name in enumerate(names):
        persona(folder, name, texts(args.steps * BATCH // adapters, 2 * length, 1 + i), table)
    command = [args.lory, "train", "--base", args.base, "--personas", folder, "--json"]
    for name in names:
        command += ["--persona", name]
    printed, peak = peak_of(command, env={**os.environ, "LORY_HOME": str(args.work / "home")})
    with open(folder / names[0] / "adapter/metrics.jsonl") as file:
        steps = [record for record in map(json.loads, file) if record["kind"] == "step"]
    return {"tokens_per_s": warm(json.loads(printed)), "peak_bytes": peak, "losses": [r["loss"] for r in steps]}


def warm(summary):
    """Tokens per second after the first step, which also maps memory and prepares the weights for the backward pass."""
    tokens, first = summary["plan"]["tokens"], summary["plan"]["measured"]
    return (tokens - first["tokens"]) / (tokens / summary["tokens_per_s"] - first["seconds"])


def rows_as_tokens(args, length):
    """The rows of a run, as Lory tokenizes them."""
    file = args.work / "rows.jsonl"
    file.write_text("".join(json.dumps({"text": row}) + "\n" for row in texts(args.steps * BATCH, 2 * length, 1)))
    shown = output(args.lory, "data", "show", file, "--base", args.base, "--max-length", length, "--too-long", "truncate",
                   "--limit", args.steps * BATCH, "--json")
    rows = [row["tokens"] for row in json.loads(shown)["rows"]]
    assert len(rows) == args.steps * BATCH and all(len(row) == length for row in rows), [len(row) for row in rows]
    path = args.work / f"rows-{length}.json"
    path.write_text(json.dumps(rows))
    return path


def peft(args, length, precision):
    return json.loads(output(args.torch, HERE / "peers/peft_train.py", args.base, args.work / f"rows-{length}.json",
                             "--precision", precision, "--steps", args.steps, "--batch", BATCH, "--threads", args.threads))


def table(rounds, lengths):
    lines = ["| sequence | trainer | tok/s | peak memory, MB | loss of the first and the last step |", "|---|---|---|---|---|"]
    for length in lengths:
        names = [name for name in rounds[0] if name.endswith(f"@{length}")]
        for name in names:
            of = lambda key: statistics.median(one[name][key] for one in rounds)
            losses = rounds[0][name]["losses"]
            lines.append(f"| {length} | {name.split('@')[0]} | {of('tokens_per_s'):,.0f} | {of('peak_bytes') / 1e6:,.0f} | "
                         f"{losses[0]:.3f}, {losses[-1]:.3f} |")
    for length in lengths:
        speed = {name: statistics.median(one[name]["tokens_per_s"] for one in rounds) for name in rounds[0]}
        memory = {name: statistics.median(one[name]["peak_bytes"] for one in rounds) for name in rounds[0]}
        peers = [name for name in speed if name.startswith("PEFT") and name.endswith(f"@{length}")]
        if peers:
            best = max(peers, key=speed.get)
            lines.append(f"\nSequence {length}: Lory {speed[f'Lory@{length}'] / speed[best]:.2f}x the best of PEFT "
                         f"({best.split('@')[0]}), at 1/{memory[best] / memory[f'Lory@{length}']:.1f} of its memory.")
        together = f"Lory, {BATCH} adapters together@{length}"
        if together in speed:
            lines.append(f"\nSequence {length}: {BATCH} adapters together cost {speed[f'Lory@{length}'] / speed[together]:.2f}x one "
                         "on as many tokens.")
    return "\n".join(lines) + "\n"


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("work", type=Path)
    p.add_argument("base", type=Path)
    p.add_argument("--lory", type=Path, default=HERE.parent / "target/release/lory")
    p.add_argument("--torch", type=Path, help="a Python with torch and peft; default: measure Lory only")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--steps", type=int, default=12)
    p.add_argument("--precisions", nargs="*", choices=PRECISIONS, default=PRECISIONS, help="precisions of PEFT; on a machine that "
                   "lacks the bf16 instructions of AVX-512 or AMX, PyTorch takes minutes per step in bf16")
    p.add_argument("--lengths", type=int, nargs="*", default=[128, 256])
    p.add_argument("--threads", type=int, default=os.cpu_count())
    p.add_argument("--out", type=Path)
    args = p.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    args.work = args.work.resolve()
    found = {}
    for length in args.lengths:
        found[f"Lory@{length}"] = lambda length=length: lory(args, length, 1)
        found[f"Lory, {BATCH} adapters together@{length}"] = lambda length=length: lory(args, length, BATCH)
        if args.torch:
            rows_as_tokens(args, length)
            for precision in args.precisions:
                found[f"PEFT {precision}@{length}"] = lambda length=length, precision=precision: peft(args, length, precision)
    run_rounds(args, found, lambda rounds: table(rounds, args.lengths))


if __name__ == "__main__":
    main()
