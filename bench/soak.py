#!/usr/bin/env python3
"""Soak test: mixed tenants against one `lory serve` for half an hour. Memory, open files and threads must be flat at the end.

    bench/soak.py target/release/lory --out bench/runs/DATE-MACHINE-soak
    bench/soak.py target/debug/lory --minutes 2

It makes a tiny random base with six tones, starts a server with API keys, and runs these clients at the same time until the time is
up: chats in several tones, with JSON schemas, several answers and log-probabilities; streams that disconnect after a few events;
publications and removals of personas; training jobs, most of them cancelled; uploads, votes and evaluations; and bad requests
(broken JSON, unknown fields and keys, oversized bodies and headers, connections that send nothing).

It samples the server's resident memory, open file descriptors and threads from /proc. Over the last third of the run, the slope of each
(the median of the slopes of all pairs of samples, Theil and Sen) times the length of that third must stay within a bound:

    resident memory   32 MiB, or 5% of its median if that is more (--memory-bound MIB)
    file descriptors  16
    threads           4

It exits with 1 if one is not flat, if a response has status 500, or if the server ended. With --out PREFIX it writes PREFIX.json,
PREFIX.md (a table) and PREFIX.svg (a plot). Linux only; needs the Python standard library only.
"""

import argparse
import collections
import functools
import http.client
import io
import json
import os
import random
import re
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
LAYERS, HIDDEN, KV = 2, 128, 64
BASE = f"--layers {LAYERS} --hidden {HIDDEN} --ffn 256 --heads 4 --kv-heads 2 --vocab 1024 --context 512".split()
TENANTS = ["acme", "bank", "club"]
TONES = 2
MIB = 1 << 20
# What is sampled: key, title, unit, and the allowed growth over the last third.
SERIES = [("rss", "Resident memory", "MiB"), ("fds", "Open file descriptors", ""), ("threads", "Threads", "")]
BOUNDS = {"fds": 16, "threads": 4}
SCHEMA = {"type": "object", "required": ["kind"], "additionalProperties": False,
          "properties": {"kind": {"enum": ["order", "refund"]}, "number": {"type": "integer", "minimum": 0, "maximum": 99}}}


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("lory", type=Path, help="the binary")
    p.add_argument("--minutes", type=float, default=30)
    p.add_argument("--interval", type=float, default=3, help="seconds between two samples")
    p.add_argument("--memory-bound", type=float, default=32, metavar="MIB", help="allowed growth of the last third")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--out", type=Path, metavar="PREFIX", help="write PREFIX.json, PREFIX.md and PREFIX.svg")
    return p.parse_args()


# Files of the test


def adapter(rng, rank=4):
    """The two files of a random PEFT adapter for the tiny base."""
    header, body = {"__metadata__": {"format": "pt"}}, io.BytesIO()
    for layer in range(LAYERS):
        for module, outputs in (("q_proj", HIDDEN), ("v_proj", KV)):
            for half, shape in (("A", [rank, HIDDEN]), ("B", [outputs, rank])):
                at = body.tell()
                body.write(b"".join(struct.pack("<f", rng.gauss(0, 0.05)) for _ in range(shape[0] * shape[1])))
                name = f"base_model.model.model.layers.{layer}.self_attn.{module}.lora_{half}.weight"
                header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, body.tell()]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 2 * rank, "target_modules": ["q_proj", "v_proj"]}
    return {"adapter_config.json": json.dumps(config).encode(),
            "adapter_model.safetensors": struct.pack("<Q", len(text)) + text + body.getvalue()}


def zipped(files):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


def rows(rng, count):
    words = "order parcel refund invoice delivery Tuesday number address friend hello".split()
    row = lambda: {"instruction": " ".join(rng.choices(words, k=6)), "output": " ".join(rng.choices(words, k=8))}
    return "".join(json.dumps(row()) + "\n" for _ in range(count)).encode()


def personas(folder, rng):
    names = [f"{tenant}-{number}" for tenant in TENANTS for number in range(TONES)]
    for name in names:
        (folder / name / "adapter").mkdir(parents=True)
        (folder / name / "persona.toml").write_text(f'description = "Tone {name}"\nversion = 1\n')
        for file, data in adapter(rng).items():
            (folder / name / "adapter" / file).write_bytes(data)
    return names


# The server


class Server:
    """`lory serve` with keys, on a free port, with all of its state in `work`."""

    def __init__(self, lory, work, rng):
        subprocess.run([sys.executable, HERE / "random_folder.py", work / "base", *BASE], check=True, stdout=subprocess.DEVNULL)
        self.personas = personas(work / "personas", rng)
        env = {**os.environ, "LORY_HOME": str(work / "home")}
        flags = {"ops": ["--admin"]} | {name: ["--persona", f"{name}-*", "--base", "--train"] for name in TENANTS}
        flags["slow"] = ["--persona", "acme-*", "--requests-per-minute", "20"]
        self.keys = {}
        for name, of_key in flags.items():
            command = [lory, "key", "new", name, *of_key, "--keys", work / "keys.toml"]
            self.keys[name] = subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout.split()[-1]
        command = [lory, "serve", "--base", work / "base", "--personas", work / "personas", "--adapter-root", work / "personas",
                   "--keys", work / "keys.toml", "--registry", work / "registry", "--jobs-dir", work / "jobs", "--port", "0",
                   "--kv-memory", "32MiB", "--adapter-memory", "1MiB"]
        self.log = open(work / "serve.log", "w+", encoding="utf-8", errors="replace")
        self.child = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=self.log, text=True, cwd=work)
        self.port = None
        for line in self.child.stdout:
            if found := re.search(r"http://[\d.]+:(\d+)", line):
                self.port = int(found[1])
                break
        if not self.port:
            sys.exit(f"the server ended\n{self.tail()}")
        threading.Thread(target=self.child.stdout.read, daemon=True).start()
        while self.request("GET", "/ready")[0] != 200:
            if self.child.poll() is not None:
                sys.exit(f"the server ended\n{self.tail()}")
            time.sleep(0.1)

    def tail(self):
        self.log.flush()
        return "\n".join(Path(self.log.name).read_text(errors="replace").splitlines()[-20:])

    def connect(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)

    def headers(self, key, kind="application/json"):
        return {"Authorization": f"Bearer {self.keys.get(key, key)}", "Content-Type": kind}

    def request(self, method, path, key="ops", body=None, kind="application/json"):
        """The status, and the body as JSON if it is JSON."""
        data = json.dumps(body).encode() if body is not None and not isinstance(body, bytes) else body
        connection = self.connect()
        try:
            connection.request(method, path, data, self.headers(key, kind))
            response = connection.getresponse()
            text = response.read()
            if response.status == 500:
                print(f"{method} {path}: 500 {text[:300]!r}", file=sys.stderr, flush=True)
            try:
                return response.status, json.loads(text)
            except ValueError:
                return response.status, text
        finally:
            connection.close()

    def upload(self, key, data):
        boundary = "soak-boundary"
        body = (f'--{boundary}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n--{boundary}\r\n'
                'Content-Disposition: form-data; name="file"; filename="rows.jsonl"\r\n\r\n').encode()
        body += data + f"\r\n--{boundary}--\r\n".encode()
        return self.request("POST", "/v1/files", key, body, f"multipart/form-data; boundary={boundary}")

    def sample(self):
        """Resident memory in MiB, open file descriptors and threads; None when the process has ended."""
        try:
            status = Path(f"/proc/{self.child.pid}/status").read_text()
            fds = len(os.listdir(f"/proc/{self.child.pid}/fd"))
        except OSError:
            return None
        found = {key: re.search(rf"^{key}:\s*(\d+)", status, re.M) for key in ("VmRSS", "Threads")}
        if not all(found.values()):
            return None
        return {"rss": int(found["VmRSS"][1]) / 1024, "fds": fds, "threads": int(found["Threads"][1])}

    def close(self):
        """Ends it with SIGTERM; the exit code, or None if it had to be killed."""
        if self.child.poll() is not None:
            return self.child.returncode
        self.child.send_signal(signal.SIGTERM)
        try:
            return self.child.wait(60)
        except subprocess.TimeoutExpired:
            self.child.kill()
            return None


# The clients. Each is a generator: a `yield` is the status of a request.


def chats(server, rng, tenant):
    while True:
        tone = f"{tenant}-{rng.randrange(TONES)}"
        model = rng.choice([tone, tone, tone, f"{tenant}-0*0.7+{tenant}-1*0.3", "base"])
        body = {"model": model, "messages": [{"role": "user", "content": "Where is my order? " * rng.randint(1, 4)}],
                "max_completion_tokens": rng.randint(1, 24), "temperature": rng.choice([0, 0.8]), "seed": rng.randrange(1000)}
        body |= rng.choice([{}, {}, {"n": 2}, {"logprobs": True, "top_logprobs": 3},
                            {"response_format": {"type": "json_schema", "json_schema": {"name": "t", "schema": SCHEMA}}}])
        yield server.request("POST", "/v1/chat/completions", tenant, body)[0]
        prompts = ["Hello", "Dear customer,", "Order 12"][: rng.randint(1, 3)]
        yield server.request("POST", "/v1/completions", tenant, {"model": tone, "prompt": prompts, "max_tokens": 4})[0]
        yield server.request("POST", "/generate", tenant, {"prompt": "Hi", "user_type": tone, "max_new_tokens": 4})[0]
        yield server.request("GET", "/v1/models", tenant)[0]


def disconnecting_streams(server, rng, tenant):
    while True:
        body = {"model": f"{tenant}-{rng.randrange(TONES)}", "stream": True, "max_completion_tokens": 200, "ignore_eos": True,
                "messages": [{"role": "user", "content": "Tell me a long story."}]}
        connection = server.connect()
        try:
            connection.request("POST", "/v1/chat/completions", json.dumps(body), server.headers(tenant))
            if rng.random() < 0.3:
                # Closed before the answer begins, with a reset.
                connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                time.sleep(rng.random() * 0.05)
                yield "disconnected"
                continue
            response = connection.getresponse()
            for _ in range(rng.randint(1, 6)):
                response.readline()
            yield response.status
        finally:
            connection.close()


def publications(server, rng, _):
    """The operator: adapters come as uploads and as paths, and every persona is removed again."""
    for number in range(1 << 30):
        name = f"{rng.choice(TENANTS)}-new{number % 5}"
        if number % 2:
            status, answer = server.request("POST", "/v1/adapters", body=zipped(adapter(rng)), kind="application/zip")
            yield status
            source = {"upload": answer.get("sha256", "0" * 64)} if isinstance(answer, dict) else {}
        else:
            source = {"adapter_path": f"{rng.choice(server.personas)}/adapter"}
        yield server.request("POST", f"/v1/personas/{name}/versions", body=source)[0]
        yield server.request("POST", "/generate", body={"prompt": "Hi", "user_type": name, "max_new_tokens": 3})[0]
        yield server.request("DELETE", f"/v1/personas/{name}")[0]
        if number % 10 == 9:
            yield server.request("POST", "/v1/registry/gc", body={})[0]
            yield server.request("GET", "/metrics")[0]
            yield server.request("GET", "/v1/lora_adapters")[0]
        time.sleep(0.5)


def training(server, rng, tenant):
    """Uploads, plans, a job that is cancelled or ends, and an evaluation that is cancelled."""
    while True:
        status, file = server.upload(tenant, rows(rng, 24))
        yield status
        if status != 200:
            time.sleep(1)
            continue
        of_file = f"/v1/files/{file['id']}"
        yield server.request("GET", of_file + "/lint", tenant)[0]
        yield server.request("GET", of_file + "/rows?limit=2", tenant)[0]
        job = {"model": "base", "training_file": file["id"], "suffix": f"{tenant}-trained", "publish": False,
               "hyperparameters": {"n_epochs": rng.choice([1, 50]), "rank": 4}}
        yield server.request("POST", "/v1/fine_tuning/plan", tenant, job)[0]
        status, made = server.request("POST", "/v1/fine_tuning/jobs", tenant, job)
        yield status
        if status == 200:
            of_job = f"/v1/fine_tuning/jobs/{made['id']}"
            for _ in range(rng.randint(2, 10)):
                time.sleep(0.5)
                status, now = server.request("GET", of_job, tenant)
                yield status
                if now.get("status") in ("succeeded", "failed"):
                    break
            yield server.request("GET", of_job + "/events?limit=3", tenant)[0]
            yield server.request("POST", of_job + "/cancel", tenant)[0]
        asked = {"personas": [f"{tenant}-0"], "file": file["id"], "max_rows": 2}
        status, evaluation = server.request("POST", "/v1/evaluations", tenant, asked)
        yield status
        if status == 200:
            time.sleep(rng.random())
            yield server.request("POST", f"/v1/evaluations/{evaluation['id']}/cancel", tenant)[0]
        yield server.request("DELETE", of_file, tenant)[0]


def votes(server, rng, tenant):
    while True:
        body = {"a": f"{tenant}-0@1", "b": f"{tenant}-1@1", "winner": rng.choice(["a", "b"])}
        yield server.request("POST", "/v1/votes", tenant, body)[0]
        yield server.request("GET", "/v1/votes", "ops")[0]
        time.sleep(1)


def bad_requests(server, rng, _):
    chat = {"model": "acme-0", "messages": [{"role": "user", "content": "Hi"}]}
    path = "/v1/chat/completions"
    while True:
        yield server.request("POST", path, "acme", b"{" * rng.randint(1, 100))[0]
        yield server.request("POST", path, "acme", b"[" * 100_000)[0]
        yield server.request("POST", path, "acme", chat | {"unknown": 1})[0]
        yield server.request("POST", path, "acme", chat | {"temperature": 10**300})[0]
        yield server.request("POST", path, "acme", chat | {"model": "bank-0"})[0]
        yield server.request("POST", path, "acme", chat | {"model": "x" * 100_000})[0]
        yield server.request("POST", path, "not-a-key", chat)[0]
        yield server.request("POST", path, "slow", chat | {"max_completion_tokens": 1})[0]
        yield server.request("POST", path, "acme", b"\x1f\x8b\x08" + bytes(100))[0]
        yield server.request("POST", "/v1/completions", "acme", {"model": "acme-0", "prompt": "9" * 200_000})[0]
        yield server.request("GET", "/v1/fine_tuning/jobs/%ff", "acme")[0]
        yield server.request("POST", "/v1/files", "acme", bytes(1000), "multipart/form-data; boundary=x")[0]
        yield server.upload("acme", b"not json\n")[0]
        yield server.request("POST", "/v1/adapters", "ops", b"PK\x03\x04" + bytes(500), "application/zip")[0]
        yield server.request("DELETE", "/v1/personas/none")[0]
        # Connections that send nothing, half a request, or a header that never ends.
        idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(20)]
        for number, connection in enumerate(idle):
            parts = [b"", b"POST /generate HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 10\r\n\r\n{", b"GET / HTTP/1.1\r\nX: " + b"x" * 9999]
            connection.sendall(parts[number % 3])
        time.sleep(rng.random() * 2)
        for connection in idle:
            connection.close()
        yield "closed"


class Clients:
    """Runs the clients, each in its own thread, and counts what came back."""

    def __init__(self, server, seed):
        self.server, self.stop = server, threading.Event()
        self.counts, self.lock = collections.Counter(), threading.Lock()
        kinds = [(chats, tenant) for tenant in TENANTS] * 2 + [(disconnecting_streams, tenant) for tenant in TENANTS]
        kinds += [(publications, None), (training, "acme"), (training, "bank"), (votes, "club"), (bad_requests, None)]
        self.threads = []
        for number, (kind, tenant) in enumerate(kinds):
            start = functools.partial(kind, server, random.Random(1000 * seed + number), tenant)
            self.threads.append(threading.Thread(target=self.run, args=(kind.__name__, start), daemon=True))
        for thread in self.threads:
            thread.start()

    def run(self, name, start):
        client = start()
        while not self.stop.is_set():
            try:
                status = next(client)
            except (OSError, http.client.HTTPException) as error:
                # A server that is full may close connections. One that has ended is noticed by the sampler.
                status, client = type(error).__name__, start()
                time.sleep(0.2)
            with self.lock:
                self.counts[name, str(status)] += 1


# Figures


def slope(samples, key):
    """The median of the slopes of all pairs, per second."""
    steps = max(1, len(samples) // 300)
    few = samples[::steps]
    pairs = [(b[key] - a[key]) / (b["seconds"] - a["seconds"]) for i, a in enumerate(few) for b in few[i + 1 :]]
    return statistics.median(pairs) if pairs else 0.0


def figures(samples, memory_bound):
    """For each series: start, median, maximum and end, the growth of the last third and its bound."""
    third = samples[len(samples) * 2 // 3 :]
    length = third[-1]["seconds"] - third[0]["seconds"]
    result = {}
    for key, title, unit in SERIES:
        values = [sample[key] for sample in samples]
        level = statistics.median(sample[key] for sample in third)
        bound = max(memory_bound, 0.05 * level) if key == "rss" else BOUNDS[key]
        growth = slope(third, key) * length
        result[key] = {"title": title, "unit": unit, "first": values[0], "median": statistics.median(values), "most": max(values),
                       "last": values[-1], "growth": growth, "bound": bound, "flat": abs(growth) <= bound or growth < 0}
    return result


def table(of, run):
    lines = [f"{run['minutes']:g} minutes, {sum(run['counts'].values())} requests, {len(run['samples'])} samples.", "",
             "| | first | median | most | last | growth in the last third | bound | |", "|---|---|---|---|---|---|---|---|"]
    for f in of.values():
        numbers = " | ".join(f"{f[key]:.0f}" for key in ("first", "median", "most", "last"))
        title = f"{f['title']}, {f['unit']}" if f["unit"] else f["title"]
        lines.append(f"| {title} | {numbers} | {f['growth']:+.1f} | {f['bound']:.0f} | {'flat' if f['flat'] else 'GROWS'} |")
    lines += ["", "| client | responses by status |", "|---|---|"]
    by_client = collections.defaultdict(list)
    for name, count in sorted(run["counts"].items()):
        client, status = name.split(" ", 1)
        by_client[client].append(f"{status}: {count}")
    lines += [f"| {client.replace('_', ' ')} | {', '.join(statuses)} |" for client, statuses in by_client.items()]
    return "\n".join(lines) + "\n"


STYLE = """
  text { font: 13px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #24292f; }
  .title { font-size: 16px; font-weight: 600; }
  .note { font-size: 12px; fill: #57606a; }
  .page { fill: #ffffff; }
  .last { fill: #f6e7df; }
  .axis { stroke: #8c959f; fill: none; }
  .line { stroke: #b4562a; fill: none; stroke-width: 1.5; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3; }
    .note { fill: #9198a1; }
    .page { fill: #0d1117; }
    .last { fill: #2d2019; }
    .line { stroke: #f0a06d; }
  }
"""


def plot(of, run):
    """One panel for each series, over minutes; the last third is shaded."""
    samples, width, margin, panel, height = run["samples"], 760, 64, 110, 170
    end = samples[-1]["seconds"]
    x = lambda seconds: margin + (width - 2 * margin) * seconds / end
    parts = [f'<text x="24" y="30" class="title">Soak test: {run["minutes"]:g} minutes of mixed tenants</text>']
    for number, (key, f) in enumerate(of.items()):
        top = 62 + number * height
        most = 1.1 * f["most"]
        y = lambda value: top + 14 + panel * (1 - value / most)
        start = samples[len(samples) * 2 // 3]["seconds"]
        title = f"{f['title']}, {f['unit']}" if f["unit"] else f["title"]
        points = " ".join(f"{x(s['seconds']):.1f},{y(s[key]):.1f}" for s in samples)
        parts += [
            f'<rect x="{x(start):.1f}" y="{top + 14}" width="{x(end) - x(start):.1f}" height="{panel}" class="last"/>',
            f'<text x="{margin}" y="{top + 4}">{title}</text>',
            f'<text x="{width - margin}" y="{top + 4}" text-anchor="end" class="note">last third: {f["growth"]:+.1f}, allowed {f["bound"]:.0f}</text>',
            f'<path d="M{margin} {top + 14}V{top + 14 + panel}H{width - margin}" class="axis"/>',
            f'<polyline points="{points}" class="line"/>',
            f'<text x="{margin - 8}" y="{top + 14 + panel}" text-anchor="end" class="note">0</text>',
            f'<text x="{margin - 8}" y="{y(f["most"]) + 4:.0f}" text-anchor="end" class="note">{f["most"]:.0f}</text>',
            f'<text x="{width - margin}" y="{top + 30 + panel}" text-anchor="end" class="note">{end / 60:.1f} min</text>',
        ]
    height = 62 + len(of) * height + 10
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">'
    about = "<title>Resident memory, open file descriptors and threads of lory serve during the soak test</title>"
    page = f'<rect width="{width}" height="{height}" rx="8" class="page"/>'
    return "\n".join([head, about, f"<style>{STYLE}</style>", page, *parts, "</svg>"]) + "\n"


def soak(args, work):
    """Runs the clients and samples the server; the run as plain data."""
    server = Server(args.lory.resolve(), work, random.Random(args.seed))
    started, samples = time.monotonic(), []
    clients = Clients(server, args.seed)
    ended = False
    while (seconds := time.monotonic() - started) < 60 * args.minutes:
        sample = server.sample()
        if sample is None or server.child.poll() is not None:
            ended = True
            print(f"the server ended after {seconds:.0f} s\n{server.tail()}", file=sys.stderr)
            break
        samples.append({"seconds": round(seconds, 1), **sample})
        time.sleep(args.interval)
    clients.stop.set()
    for thread in clients.threads:
        thread.join(10)
    code = server.close()
    if not ended and code != 0:
        print(f"the server did not end on SIGTERM as it should: {code}\n{server.tail()}", file=sys.stderr)
    counts = {" ".join(key): count for key, count in clients.counts.items()}
    return {"minutes": args.minutes, "samples": samples, "counts": counts, "ended": ended, "exit_code": code}


def main():
    args = arguments()
    work = Path(tempfile.mkdtemp(prefix="lory-soak-"))
    try:
        run = soak(args, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if len(run["samples"]) < 6:
        sys.exit("too few samples to judge; run it longer")
    of = figures(run["samples"], args.memory_bound)
    text = table(of, run)
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        for ending, data in ((".json", json.dumps(run | {"figures": of}, indent=1) + "\n"), (".md", text), (".svg", plot(of, run))):
            args.out.with_name(args.out.name + ending).write_text(data)
    faults = sum(count for key, count in run["counts"].items() if key.endswith(" 500"))
    failed = [f["title"] for f in of.values() if not f["flat"]]
    failed += ["responses with status 500"] if faults else []
    failed += ["the server ended"] if run["ended"] else []
    failed += ["the exit code after SIGTERM"] if run["exit_code"] != 0 and not run["ended"] else []
    if failed:
        sys.exit("failed: " + ", ".join(failed))


if __name__ == "__main__":
    main()
