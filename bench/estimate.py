#!/usr/bin/env python3
"""Compares the speed that `lory doctor` estimates for one answer with what `lory bench` then measures, in turns.

    bench/estimate.py target/release/lory [--base ID|PATH] [--device DEVICE] [--precision PRECISION] [--rounds 3]

Prints both in tokens/s and their ratio, by round, then the ratio of the medians. Exits with 1 if that is off by more than 20%.
"""

import argparse
import json
import statistics
import subprocess
import sys

arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
arguments.add_argument("lory")
arguments.add_argument("--base", default="smollm2-135m")
arguments.add_argument("--device", default="cpu")
arguments.add_argument("--precision", default="auto")
arguments.add_argument("--rounds", type=int, default=3)
args = arguments.parse_args()
flags = ["--base", args.base, "--device", args.device, "--precision", args.precision, "--json"]


def run(*command):
    output = subprocess.run([args.lory, *command, *flags], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return json.loads(output.stdout)


def measured():
    report = run("bench", "--rows", "1", "--adapters", "0", "--prefill", "16", "--rounds", "3")
    decode = next(result for result in report["results"] if result["name"] == "decode")
    return decode["tokens_per_s"]


estimates, speeds = [], []
for number in range(1, args.rounds + 1):
    estimates.append(run("doctor")["probe"]["tokens_per_s"])
    speeds.append(measured())
    print(f"round {number}: estimate {estimates[-1]:.1f}, measured {speeds[-1]:.1f}, ratio {estimates[-1] / speeds[-1]:.2f}", flush=True)
ratio = statistics.median(estimates) / statistics.median(speeds)
print(f"medians: estimate {statistics.median(estimates):.1f}, measured {statistics.median(speeds):.1f}, ratio {ratio:.2f}")
sys.exit(0 if 0.8 <= ratio <= 1.2 else 1)
