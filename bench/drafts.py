#!/usr/bin/env python3
"""Measures the gain from prompt lookup (lory serve --draft-tokens) on the evaluation rows of a persona: the same questions with
it on and off, one after the other and several at a time, in alternating rounds. Answers must be identical.

    bench/drafts.py personas/customer --rows 40 --rounds 3
"""

import argparse
import concurrent.futures
import json
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path


def start(args, draft_tokens):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [args.lory, "serve", "--personas", args.persona.parent, "--port", port, "--draft-tokens", draft_tokens,
               "--no-prefix-cache"]
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    for _ in range(600):
        try:
            urllib.request.urlopen(url + "/ready", timeout=2).read()
            return process, url
        except OSError:
            time.sleep(0.1)
    sys.exit("the server did not start")


def ask(url, row, persona):
    body = {"prompt": row["instruction"], "input": row.get("input") or "", "user_type": persona, "temperature": 0,
            "max_new_tokens": 128}
    request = urllib.request.Request(url + "/generate", json.dumps(body).encode(), {"Content-Type": "application/json"})
    answer = json.load(urllib.request.urlopen(request))
    return answer["response"], answer["usage"]["completion_tokens"]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("persona", type=Path)
    p.add_argument("--lory", type=Path, default=Path(__file__).resolve().parent.parent / "target/release/lory")
    p.add_argument("--rows", type=int, default=40)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--at-once", type=int, nargs="*", default=[1, 8])
    args = p.parse_args()
    rows = [json.loads(line) for line in open(args.persona / "eval.jsonl")][: args.rows]
    servers = {n: start(args, n) for n in (0, 8)}
    speeds, answers = {}, {}
    try:
        for _ in range(args.rounds):
            for at_once in args.at_once:
                for n, (_, url) in servers.items():
                    started = time.perf_counter()
                    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
                        said = list(pool.map(lambda row: ask(url, row, args.persona.name), rows))
                    seconds = time.perf_counter() - started
                    speeds.setdefault((at_once, n), []).append(sum(tokens for _, tokens in said) / seconds)
                    answers.setdefault(n, said)
                    if said != answers[0]:
                        sys.exit(f"answers differ with --draft-tokens {n}, {at_once} at a time")
    finally:
        for process, _ in servers.values():
            process.terminate()
    print(f"{len(rows)} answers, {sum(tokens for _, tokens in answers[0])} tokens, prompts included in the time")
    print(f"{'at once':>8}{'off':>12}{'on':>12}{'ratio':>8}   new tok/s, medians of {args.rounds} rounds")
    for at_once in args.at_once:
        off, on = (statistics.median(speeds[at_once, n]) for n in (0, 8))
        print(f"{at_once:8}{off:12.1f}{on:12.1f}{on / off:8.2f}")


if __name__ == "__main__":
    main()
