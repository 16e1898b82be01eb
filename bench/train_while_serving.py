#!/usr/bin/env python3
"""Measures the cost of a training job for running streams: inter-token latency with and without a job.

Needs a running server, rows to train on, and only Python's standard library:
    lory serve --train-latency-budget 100ms --draft-tokens 0 --port 8000 &
    python bench/train_while_serving.py http://127.0.0.1:8000 personas/customer/train.jsonl --streams 1,4

Each connection sends one stream after the other, in alternating rounds: first with the job paused, then with the job
resumed. A gap is the time between two events of a stream, as the client reads them; the first event of a
stream is the time to first token and is counted separately. Use --draft-tokens 0: accepted tokens of prompt lookup arrive together
and would give gaps of 0. The number of trained tokens comes from /metrics. Prints a table, and
writes JSON with --json.
"""
import argparse
import json
import os
import statistics
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid

QUESTIONS = [
    "Where is my order #{}?", "Can I return the lamp from order #{}?", "Order #{} came without the invoice, what now?",
    "Please change the address of order #{}.", "How do I cancel order #{}?",
]


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("url")
    p.add_argument("rows", help="a file of training rows")
    p.add_argument("--persona", default="base", help="persona of the streams")
    p.add_argument("--streams", default="1,4", help="numbers of streams at once, one measurement each")
    p.add_argument("--seconds", type=float, default=20, help="length of a round")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--new", type=int, default=96, help="tokens per answer")
    p.add_argument("--json", metavar="FILE")
    return p.parse_args()


def ask(url, path, body=None, method=None, headers=None):
    data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
    headers = headers or {"content-type": "application/json"}
    with opened(urllib.request.Request(url + path, data, headers, method=method)) as response:
        return response.read()


def opened(request):
    try:
        return urllib.request.urlopen(request)
    except urllib.error.HTTPError as error:
        print(error.read().decode(), file=sys.stderr)
        os._exit(1)


def upload(url, path):
    mark = uuid.uuid4().hex
    with open(path, "rb") as file:
        rows = file.read()
    body = (
        f"--{mark}\r\ncontent-disposition: form-data; name=\"purpose\"\r\n\r\nfine-tune\r\n"
        f"--{mark}\r\ncontent-disposition: form-data; name=\"file\"; filename=\"rows.jsonl\"\r\n\r\n"
    ).encode() + rows + f"\r\n--{mark}--\r\n".encode()
    kind = {"content-type": f"multipart/form-data; boundary={mark}"}
    return json.loads(ask(url, "/v1/files", body, headers=kind))["id"]


def metric(url, name):
    for line in ask(url, "/metrics").decode().splitlines():
        if line.startswith(name + " "):
            return float(line.split()[1])
    return 0.0


class Round:
    """Runs streams for some seconds."""

    def __init__(self, args, count):
        self.args, self.count = args, count
        self.gaps, self.firsts, self.lock = [], [], threading.Lock()

    def run(self):
        self.end = time.perf_counter() + self.args.seconds
        clients = [threading.Thread(target=self.client, args=(i,)) for i in range(self.count)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()

    def client(self, number):
        asked = 0
        while time.perf_counter() < self.end:
            asked += 1
            question = QUESTIONS[(number + asked) % len(QUESTIONS)].format(10_000 + 100 * number + asked)
            body = {"prompt": question, "max_new_tokens": self.args.new, "stream": True, "temperature": 0.8, "seed": asked}
            body["user_type"] = self.args.persona
            request = urllib.request.Request(
                self.args.url + "/generate", json.dumps(body).encode(), {"content-type": "application/json"})
            last = began = time.perf_counter()
            first, gaps = None, []
            with opened(request) as response:
                for line in response:
                    if not line.startswith(b"data: ") or b'"delta"' not in line:
                        continue
                    now = time.perf_counter()
                    if first is None:
                        first = now - began
                    else:
                        gaps.append(now - last)
                    last = now
            with self.lock:
                self.gaps += gaps
                if first is not None:
                    self.firsts.append(first)


def at(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000 if ordered else float("nan")


def main():
    args = arguments()
    url = args.url.rstrip("/")
    args.url = url
    base = json.loads(ask(url, "/ready"))["base"]
    job = json.loads(ask(url, "/v1/fine_tuning/jobs", {
        "model": base, "training_file": upload(url, args.rows), "suffix": "bench",
        "hyperparameters": {"n_epochs": 1000},
    }))["id"]
    path = f"/v1/fine_tuning/jobs/{job}"

    def state():
        return json.loads(ask(url, path))

    while state()["status"] != "running" or state()["lory"]["progress"]["step"] < 2:
        time.sleep(0.2)
    before, began = metric(url, "lory_training_tokens_total"), time.perf_counter()
    time.sleep(args.seconds)
    alone = (metric(url, "lory_training_tokens_total") - before) / (time.perf_counter() - began)
    ask(url, path + "/pause", method="POST")
    figures = {"trained_alone_tokens_per_s": alone, "streams": []}
    print(f"training without requests: {alone:.0f} tokens/s")
    print("streams  job  gaps   p50 ms   p95 ms   p99 ms  first token p50 ms   training tokens/s")
    try:
        for count in [int(n) for n in args.streams.split(",")]:
            Round(args, count).run()
            kept = {name: {"gaps": [], "firsts": [], "trained": []} for name in ("no", "yes")}
            for _ in range(args.rounds):
                for name in ("no", "yes"):
                    if name == "yes":
                        ask(url, path + "/resume", method="POST")
                        while state()["status"] != "running":
                            time.sleep(0.1)
                        time.sleep(2)
                    before, began = metric(url, "lory_training_tokens_total"), time.perf_counter()
                    round_ = Round(args, count)
                    round_.run()
                    took = time.perf_counter() - began
                    kept[name]["trained"].append((metric(url, "lory_training_tokens_total") - before) / took)
                    kept[name]["gaps"] += round_.gaps
                    kept[name]["firsts"] += round_.firsts
                    if name == "yes":
                        ask(url, path + "/pause", method="POST")
            for name, seen in kept.items():
                row = {
                    "streams": count, "job": name == "yes", "gaps": len(seen["gaps"]),
                    "p50_ms": at(seen["gaps"], 0.5), "p95_ms": at(seen["gaps"], 0.95), "p99_ms": at(seen["gaps"], 0.99),
                    "first_p50_ms": at(seen["firsts"], 0.5), "trained_tokens_per_s": statistics.mean(seen["trained"]),
                }
                figures["streams"].append(row)
                print(f"{count:7}  {name:3}  {row['gaps']:5} {row['p50_ms']:8.2f} {row['p95_ms']:8.2f} {row['p99_ms']:8.2f}"
                      f" {row['first_p50_ms']:19.1f} {row['trained_tokens_per_s']:19.0f}")
    finally:
        ask(url, path + "/cancel", method="POST")
    if args.json:
        with open(args.json, "w") as file:
            json.dump(figures, file, indent=1)


main()
