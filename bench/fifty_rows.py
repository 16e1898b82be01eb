#!/usr/bin/env python3
"""Measures the time from 50 rows to an adapter that passes its gate: `lory train` plus `lory eval`.

    cargo build --release
    python bench/fifty_rows.py WORK [--base ID|PATH] [--rows 50] [--rounds 3]

Takes 50 rows of the shipped customer tone, spread over its intents, checks the adapter against the gate below on 16 of its held-out
questions, and prints both times in seconds, medians of the rounds, and the values that the gate measured.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
TONE = HERE.parent / "personas/customer"
QUESTIONS = 16


def spread(file, count):
    """Rows of every intent in turn, until there are `count`."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    by_intent = {}
    for row in rows:
        by_intent.setdefault(row["intent"], []).append(row)
    turns = max(map(len, by_intent.values()))
    return [rows[i] for i in range(turns) for rows in by_intent.values() if i < len(rows)][:count]


def persona(folder, args):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, count in [("train", args.rows), ("eval", QUESTIONS)]:
        rows = spread(TONE / f"{name}.jsonl", count)
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shipped = (TONE / "persona.toml").read_text()
    gate = shipped[shipped.index("[eval]"):shipped.index("tone_at_least")]
    (folder / "persona.toml").write_text(
        'description = "fifty rows"\nversion = 1\nsystem_prompt = "You are the support assistant of an online shop."\n'
        "max_new_tokens = 80\n\n[sampling]\ntemperature = 0.0\n\n"
        # No validation rows: the questions of the gate decide.
        f'[train]\ndata = "train.jsonl"\nepochs = {args.epochs}\nlr = {args.lr}\nbatch_rows = {args.batch_rows}\n'
        "validation_fraction = 0.0\nsave_every = 0\n\n"
        f"{gate}tone_at_least = {args.tone_at_least}\ncopied_at_least = {args.copied_at_least}\n")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("work", type=Path)
    p.add_argument("--base", default="smollm2-135m")
    p.add_argument("--lory", type=Path, default=HERE.parent / "target/release/lory")
    p.add_argument("--rows", type=int, default=50)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--epochs", type=int, default=2)
    p.add_argument("--lr", default="4e-3")
    p.add_argument("--batch-rows", type=int, default=4)
    p.add_argument("--tone-at-least", type=float, default=0.9)
    p.add_argument("--copied-at-least", type=float, default=0.5)
    args = p.parse_args()
    folder = args.work.resolve() / "fifty"
    rounds = []
    for _ in range(args.rounds):
        persona(folder / "tone", args)
        common = ["--base", args.base, "--personas", folder, "--persona", "tone", "--json"]
        began = time.perf_counter()
        trained = subprocess.run([args.lory, "train", *common], stdout=subprocess.PIPE, check=True)
        after_training = time.perf_counter()
        judged = subprocess.run([args.lory, "eval", "--gate", *common, "--rows", folder / "tone/eval.jsonl"], stdout=subprocess.PIPE)
        ended = time.perf_counter()
        rounds.append((after_training - began, ended - after_training, judged.returncode == 0))
        print(json.loads(trained.stdout)["tokens_per_s"], "tokens/s", json.loads(judged.stdout)["gate"], file=sys.stderr)
    train, judge = (statistics.median(one[i] for one in rounds) for i in (0, 1))
    passed = sum(one[2] for one in rounds)
    print(f"{args.rows} rows: trained in {train:.1f} s, judged in {judge:.1f} s, {train + judge:.1f} s in all; "
          f"passed its gate {passed} of {len(rounds)} times")


if __name__ == "__main__":
    main()
