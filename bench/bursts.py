#!/usr/bin/env python3
"""Measures whether `lory serve` returns its memory to the system after bursts.

    cargo build --release
    bench/bursts.py WORK BASE.gguf [--lory target/release/lory] [--out bench/runs/NAME]

A server with budgets of 128 MiB for adapters and 64 MiB for keys and values gets three bursts, one after the other: 120 large bodies, 24
at a time; 1,000 publications of an adapter, each with other bytes; and one request for each of 200 of the published personas, so that
adapters are evicted all the time. Before the first burst and ten seconds after each, it reads the server's resident memory; during a burst
it samples the highest. Only the Python standard library is needed. WORK needs 11 GB of disk and is deleted at the end.
"""

import argparse
import array
import concurrent.futures
import json
import os
import random
import shutil
import struct
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

from compare import HERE, Server, free_port, machine

MIB = 1 << 20
BODIES, AT_ONCE, BODY_BYTES = 120, 24, 4_000_000
PUBLISHED, ASKED = 1000, 200
CUSTOMER = HERE.parent / "personas/customer/adapter"


def post(url, body):
    """The status of the response; 0 if the server closed the connection."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            response.read()
            return response.status
    except urllib.error.HTTPError as error:
        error.read()
        return error.code
    except OSError:
        return 0


def large_bodies(server, _):
    """Prompts of digits, far longer than the context: each is refused."""
    body = {"model": "base", "prompt": "7" * BODY_BYTES}
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(lambda _: post(f"{server.url}/v1/completions", body), range(BODIES)))


def publications(server, work):
    """The adapter of the shipped persona with seeded noise in the lowest bits."""
    blob = (CUSTOMER / "adapter_model.safetensors").read_bytes()
    head = 8 + struct.unpack("<Q", blob[:8])[0]
    shutil.copy(CUSTOMER / "adapter_config.json", work / "root/adapter")
    rng, statuses = random.Random(1), []
    for number in range(PUBLISHED):
        values = array.array("H")
        values.frombytes(blob[head:])
        for at in rng.sample(range(len(values)), 64):
            values[at] ^= 1
        (work / "root/adapter/adapter_model.safetensors").write_bytes(blob[:head] + values.tobytes())
        statuses.append(post(f"{server.url}/v1/personas/tone{number}/versions", {"adapter_path": "adapter"}))
    return statuses


def evictions(server, _):
    """Requests that need another adapter each time."""
    ask = lambda number: post(f"{server.url}/v1/completions", {"model": f"tone{number}", "prompt": "Hello", "max_tokens": 1})
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        return list(pool.map(ask, range(ASKED)))


class Highest(threading.Thread):
    """Samples the resident memory until it is stopped."""

    def __init__(self, server):
        super().__init__(daemon=True)
        self.server, self.most, self.stopped = server, 0, threading.Event()

    def run(self):
        while not self.stopped.wait(0.05) and self.server.process.poll() is None:
            self.most = max(self.most, self.server.resident())


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("work", type=Path)
    p.add_argument("base", type=Path)
    p.add_argument("--lory", type=Path, default=HERE.parent / "target/release/lory")
    p.add_argument("--out", type=Path)
    args = p.parse_args()
    if args.work.exists():
        p.error(f"{args.work} exists; name a new folder")
    work = args.work.resolve()
    for folder in ("root/adapter", "personas", "home"):
        (work / folder).mkdir(parents=True)
    port = free_port()
    os.environ["LORY_HOME"] = str(work / "home")
    command = [args.lory, "serve", "--base", args.base, "--personas", work / "personas", "--registry", work / "registry",
               "--adapter-root", work / "root", "--adapter-memory", "128MiB", "--kv-memory", "64MiB", "--port", port]
    rows = []
    with Server(command, port, "/health") as server:
        post(f"{server.url}/v1/completions", {"model": "base", "prompt": "Hello", "max_tokens": 8})
        rows.append({"burst": "before", "after_mib": server.resident() / MIB})
        for name, burst in [("120 large bodies", large_bodies), ("1,000 publications", publications),
                            ("200 requests for other adapters", evictions)]:
            highest = Highest(server)
            highest.start()
            began = time.monotonic()
            statuses = burst(server, work)
            seconds = time.monotonic() - began
            highest.stopped.set()
            time.sleep(10)
            if server.process.poll() is not None:
                sys.exit(f"{name}: the server ended with {server.process.returncode}; responses: {statuses}")
            counts = {str(status): statuses.count(status) for status in sorted(set(statuses))}
            rows.append({"burst": name, "statuses": counts, "seconds": round(seconds, 1), "most_mib": highest.most / MIB,
                         "after_mib": server.resident() / MIB})
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    shutil.rmtree(work)
    where = machine(argparse.Namespace(threads=os.cpu_count()))
    lines = ["Resident memory in MiB of `lory serve --adapter-memory 128MiB --kv-memory 64MiB`.",
             "{cpu}, {cores} cores, {commit}, {date}.".format(**where), "",
             "| burst | responses by status | most during it | ten seconds after it |", "|---|---|---|---|"]
    for row in rows:
        statuses = ", ".join(f"{count} x {status}" for status, count in row.get("statuses", {}).items())
        most = f"{row['most_mib']:.0f}" if "most_mib" in row else ""
        lines.append(f"| {row['burst']} | {statuses} | {most} | {row['after_mib']:.0f} |")
    print("\n".join(lines))
    if args.out:
        Path(f"{args.out}.json").write_text(json.dumps({"machine": where, "rows": rows}, indent=1) + "\n")
        Path(f"{args.out}.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
