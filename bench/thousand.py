#!/usr/bin/env python3
"""Measures the cost of many personas, compared with eight or none, with one server each and in alternating rounds.

    cargo build --release
    bench/make_personas.py personas/customer WORK/many 1000        # 10 GB
    bench/make_personas.py personas/customer WORK/personas 8
    python bench/thousand.py WORK BASE.gguf --out bench/runs/NAME

It compares eight clients with eight tones and eight clients whose tones follow Zipf's law over all of WORK/many, within
--adapter-memory; clients of the base on a server with all personas and on one that has none; and the gaps of one stream
of the base while another client requests, one after the other, a tone that is in memory, or tones that must
be read. Prompt lookup is off, so that each step gives one token of a stream. Writes NAME.json and NAME.md. Close all other programs first.
"""

import argparse
import asyncio
import itertools
import json
import os
import statistics
import sys
import tempfile
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import load
from compare import CLIENTS, HERE, NEW, PROMPT, Server, free_port, machine, output

STREAM = 256


def figures_of(url, base, *more):
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        output(sys.executable, HERE / "load.py", "--url", url, "--base", base, "--clients", CLIENTS, "--prompt", PROMPT,
               "--new", NEW, "--json", file.name, *more)
        figures = json.load(open(file.name))
    return {"new_tokens_per_s": figures["new_tokens_per_s"], "ttft_p95_ms": figures["ms"]["ttft"]["p95"],
            "gap_p95_ms": figures["ms"]["gap"]["p95"], "failed": figures["failed"]}


async def pace(url, base, personas):
    """The gaps of one stream of the base, in seconds, while one client requests one token of each of `personas` in turn; and the
    number of its requests."""
    request = SimpleNamespace(url=url, api="openai", base=base, seed=3, ids=None, shared_prefix=0)
    stream = SimpleNamespace(**vars(request), prompt=16, new=STREAM)
    other = SimpleNamespace(**vars(request), prompt=8, new=1)
    asked = 0

    async def ask_on():
        nonlocal asked
        for number in itertools.count(1):
            answer = await load.ask(other, next(personas), number)
            if "error" in answer:
                sys.exit(answer["error"])
            asked += 1

    asking = asyncio.create_task(ask_on()) if personas else None
    answer = await load.ask(stream, None, 0)
    if asking:
        asking.cancel()
    if "error" in answer:
        sys.exit(answer["error"])
    return answer["gaps"], asked


def paces(url, base, known, cold):
    figures = {}
    for name, personas in (("alone", None), ("resident", itertools.repeat(known)), ("cold", cold)):
        gaps, asked = asyncio.run(pace(url, base, personas))
        figures[name] = {"gap_p50_ms": 1e3 * load.percentile(gaps, .5), "gap_p95_ms": 1e3 * load.percentile(gaps, .95),
                         "gap_max_ms": 1e3 * max(gaps), "asked": asked, "seconds": sum(gaps)}
    return figures


def row(words, rounds, *path, digits=0):
    values = []
    for one in rounds:
        for key in path:
            one = one[key]
        values.append(one)
    return f"| {words} | {statistics.median(values):,.{digits}f} | {min(values):,.{digits}f} | {max(values):,.{digits}f} |"


def table(rounds, count):
    lines = ["| | median | least | most |", "|---|---|---|---|"]
    for kind, words in (("eight", "eight tones, one each"), ("zipf", f"{count} tones, Zipf")):
        lines += [row(f"{words}: new tok/s", rounds, kind, "new_tokens_per_s", digits=1),
                  row(f"{words}: TTFT p95, ms", rounds, kind, "ttft_p95_ms"),
                  row(f"{words}: failed", rounds, kind, "failed")]
    for kind, words in (("none", "base, no personas known"), ("known", f"base, {count} personas known")):
        lines.append(row(f"{words}: new tok/s", rounds, kind, "new_tokens_per_s", digits=1))
    for kind, words in (("alone", "alone"), ("resident", "with a tone in memory"), ("cold", "with a tone read each time")):
        lines += [row(f"one stream, {words}: gap p50, ms", rounds, "pace", kind, "gap_p50_ms", digits=1),
                  row(f"one stream, {words}: gap p95, ms", rounds, "pace", kind, "gap_p95_ms", digits=1),
                  row(f"one stream, {words}: longest gap, ms", rounds, "pace", kind, "gap_max_ms", digits=1)]
        if kind != "alone":
            lines.append(row(f"one stream, {words}: other requests", rounds, "pace", kind, "asked"))
    lines.append(row("resident memory of the server that knows all, MB", rounds, "resident_mb"))
    return "\n".join(lines) + "\n"


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("work", type=Path)
    p.add_argument("base", type=Path)
    p.add_argument("--lory", type=Path, default=HERE.parent / "target/release/lory")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--requests", type=int, default=4, help="requests of each client in each round")
    p.add_argument("--adapter-memory", default="256MiB")
    p.add_argument("--threads", type=int, default=os.cpu_count())
    p.add_argument("--out", type=Path)
    args = p.parse_args()
    empty = tempfile.TemporaryDirectory()
    many = sorted(p.name for p in (args.work / "many").iterdir())
    # In numerical order, so that rank 1 of Zipf's law is the first persona.
    many.sort(key=lambda name: (len(name), name))

    def server(personas):
        port = free_port()
        return Server([args.lory, "serve", "--base", args.base, "--personas", personas, "--adapter-memory", args.adapter_memory,
                       "--draft-tokens", 0, "--port", port], port, "/ready")

    cold = itertools.cycle(many[len(many) // 2 :])
    rounds = []
    with server(args.work / "many") as all_known, server(args.work / "personas") as eight, server(empty.name) as none:
        base = json.load(urllib.request.urlopen(none.url + "/v1/models"))["data"][0]["id"]
        names = ",".join(sorted(p.name for p in (args.work / "personas").iterdir())[:CLIENTS])
        for number in range(args.rounds):
            print(f"round {number + 1} of {args.rounds}", file=sys.stderr, flush=True)
            common = ["--requests", args.requests, "--seed", 10 + number]
            todo = {
                "eight": lambda: figures_of(eight.url, base, *common, "--tones", "one-each", "--personas", names),
                "zipf": lambda: figures_of(all_known.url, base, *common, "--tones", "zipf:1", "--personas", ",".join(many)),
                "none": lambda: figures_of(none.url, base, *common),
                "known": lambda: figures_of(all_known.url, base, *common),
            }
            order = list(todo) if number % 2 == 0 else list(todo)[::-1]
            found = {kind: todo[kind]() for kind in order}
            found["pace"] = paces(all_known.url, base, many[0], cold)
            found["resident_mb"] = all_known.resident() / 1e6
            rounds.append(found)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        about = machine(args)
        args.out.with_suffix(".json").write_text(json.dumps({"machine": about, "rounds": rounds}, indent=1) + "\n")
        words = f"{about['cpu']}, {about['threads']} threads, {about['date']}, commit {about['commit']}; {len(rounds)} rounds\n\n"
        args.out.with_suffix(".md").write_text(words + table(rounds, len(many)))
    print(table(rounds, len(many)))


if __name__ == "__main__":
    main()
