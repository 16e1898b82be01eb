#!/usr/bin/env python3
"""Measures what one hostile API key can do to another key of the same server.

    cargo build --release
    bench/hostile.py WORK BASE.gguf --out bench/runs/NAME

Each attack gets a server of its own, with the keys `victim`, `neighbour`, `hostile` (each with the same share) and `ops`. A process with a
low priority repeats the attack as fast as it can. Meanwhile the victim sends one short request at a time and measures its time to first
token, /health is requested every second, and the server's resident memory is sampled. At the end the server gets SIGTERM while the attack
goes on. The first row is the baseline: a well-behaved neighbour that keeps 16 ordinary requests running instead of an attack. It is
measured for three times as long, since every ratio depends on it.

The targets: p95 of the time to first token at most twice the baseline's, resident memory at most 256 MB above what `lory doctor`
announces, /health always answered, and an end within the drain timeout. Exits with 1 if a target is missed. Only the Python
standard library is needed. Close all other programs first.
"""

import argparse
import asyncio
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

from compare import HERE, Server, free_port, machine, output
from load import WORDS, percentile

KEYS = {name: hashlib.sha256(f"secret of {name}".encode()).hexdigest() for name in ("victim", "neighbour", "hostile", "ops")}
NEW, PROMPT = 8, 64
DRAIN, TRAIN_MEMORY = 5, "512MiB"
BASELINE_TIMES = 3


# --- one HTTP exchange

async def send(url, method, path, key, body=b"", kind="application/json", more=""):
    """Opens a connection and sends a request; returns its reader and writer."""
    place = urlsplit(url)
    reader, writer = await asyncio.open_connection(place.hostname, place.port, limit=1 << 20)
    head = (f"{method} {path} HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
            f"Connection: close\r\n{more}")
    if key:
        head += f"Authorization: Bearer {key}\r\n"
    writer.write(head.encode() + b"\r\n" + body)
    await writer.drain()
    return reader, writer


async def exchange(url, method, path, key, body=b"", kind="application/json"):
    """The status and the body of the response."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    reader, writer = await send(url, method, path, key, data, kind)
    try:
        status = int((await reader.readline()).split()[1])
        while (await reader.readline()).strip():
            pass
        return status, await reader.read()
    finally:
        writer.close()


async def request_and_leave(url, path, key, body, kind="application/json"):
    """Sends a request and disconnects at once."""
    _, writer = await send(url, "POST", path, key, body if isinstance(body, bytes) else json.dumps(body).encode(), kind)
    writer.close()
    return 0


def multipart(purpose, name, data):
    line = "----hostile"
    parts = (f'--{line}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n{purpose}\r\n'
             f'--{line}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n').encode()
    return parts + data + f"\r\n--{line}--\r\n".encode(), f"multipart/form-data; boundary={line}"


def words(rng, count):
    return " ".join(rng.choice(WORDS) for _ in range(count))


# --- the attacks: each is a coroutine that does one round and returns a status; `lanes` of them run side by side

class Attack:
    def __init__(self, url, key):
        self.url, self.key, self.rng, self.file, self.job = url, key, random.Random(), None, None

    async def post(self, path, body, kind="application/json"):
        return (await exchange(self.url, "POST", path, self.key, body, kind))[0]

    async def upload(self, rows):
        data = "\n".join(json.dumps(row) for row in rows).encode()
        body, kind = multipart("fine-tune", "rows.jsonl", data)
        status, answer = await exchange(self.url, "POST", "/v1/files", self.key, body, kind)
        return json.loads(answer)["id"] if status == 200 else None

    async def need_file(self, count=200):
        while self.file is None:
            self.file = await self.upload([{"prompt": words(self.rng, 12), "completion": words(self.rng, 12)} for _ in range(count)])
            if self.file is None:
                await asyncio.sleep(0.5)
        return self.file


class Neighbour(Attack):
    """ordinary requests: 128 tokens in, 64 out"""
    lanes = 16

    async def round(self):
        return await self.post("/v1/completions", {"model": "base", "prompt": words(self.rng, 128), "max_tokens": 64, "ignore_eos": True})


class Digits(Attack):
    """4 MB of digits as a prompt"""
    lanes = 24

    async def round(self):
        return await self.post("/v1/completions", {"model": "base", "prompt": "7" * 4_000_000, "max_tokens": 1})


class ChatDigits(Attack):
    """4 MB of digits in a chat message"""
    lanes = 24

    async def round(self):
        message = {"role": "user", "content": "7" * 4_000_000}
        return await self.post("/v1/chat/completions", {"model": "base", "messages": [message], "max_tokens": 1})


class Bodies(Attack):
    """4 MB JSON arrays of small numbers"""
    lanes = 24

    async def round(self):
        return await self.post("/v1/completions", b'{"model":"base","max_tokens":1,"prompt":[' + b"1," * 1_990_000 + b"1]}")


class PlansAndLeaves(Attack):
    """training plans whose client disconnects"""
    lanes = 64

    async def round(self):
        body = {"model": "base", "training_file": await self.need_file()}
        return await request_and_leave(self.url, "/v1/fine_tuning/plan", self.key, body)


class SchemasAndLeaves(Attack):
    """small JSON schemas whose client disconnects"""
    lanes = 64

    async def round(self):
        names = [words(self.rng, 2).replace(" ", "_") for _ in range(4)]
        schema = {"type": "object", "properties": {name: {"type": "string", "maxLength": self.rng.randrange(5, 400)} for name in names}}
        return await request_and_leave(self.url, "/v1/chat/completions", self.key, chat(schema))


def chat(schema, tokens=16):
    return {"model": "base", "messages": [{"role": "user", "content": "Answer."}], "max_tokens": tokens,
            "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}}


class Primes(Attack):
    """schemas with `multipleOf` of large primes"""
    lanes = 16

    async def round(self):
        prime = self.rng.choice((999983, 1299709, 15485863, 32452843, 49979687))
        return await self.post("/v1/chat/completions", chat({"type": "integer", "multipleOf": prime, "minimum": self.rng.randrange(9)}))


class Patterns(Attack):
    """schemas with costly patterns"""
    lanes = 16

    async def round(self):
        pattern = "^(" + "|".join(f"[a-z{self.rng.randrange(9)}]*{c}[a-z]{{{self.rng.randrange(8, 20)}}}" for c in "aeiou") + ")$"
        return await self.post("/v1/chat/completions", chat({"type": "string", "pattern": pattern}, 256))


class Seats(Attack):
    """16 prompts with 8 answers each"""
    lanes = 8

    async def round(self):
        return await self.post("/v1/completions", {"model": "base", "prompt": [words(self.rng, 8) for _ in range(16)], "n": 8,
                                                   "temperature": 1, "max_tokens": 512, "ignore_eos": True})


class LongPrompts(Attack):
    """prompts of nearly the whole context"""
    lanes = 64

    async def round(self):
        return await self.post("/v1/completions", {"model": "base", "prompt": [self.rng.randrange(100, 40000) for _ in range(1900)],
                                                   "max_tokens": 8, "ignore_eos": True})


class Logprobs(Attack):
    """long answers with 20 log-probabilities a token"""
    lanes = 32

    async def round(self):
        return await self.post("/v1/chat/completions", {
            "model": "base", "messages": [{"role": "user", "content": words(self.rng, 8)}], "n": 8, "temperature": 1,
            "max_tokens": 1024, "ignore_eos": True, "logprobs": True, "top_logprobs": 20})


class Names(Attack):
    """model names of 1.9 MB"""
    lanes = 16

    async def round(self):
        return await self.post("/v1/completions", {"model": "x" * 1_900_000, "prompt": "Hi", "max_tokens": 1, "stream": True})


class Lint(Attack):
    """the linter on 20,000 rows"""
    lanes = 4

    async def round(self):
        file = await self.need_file(20_000)
        return (await exchange(self.url, "GET", f"/v1/files/{file}/lint", self.key))[0]


class Rows(Attack):
    """one row of a large file"""
    lanes = 16

    async def round(self):
        file = await self.need_file(20_000)
        return (await exchange(self.url, "GET", f"/v1/files/{file}/rows?limit=1", self.key))[0]


class Gates(Attack):
    """jobs with 128 costly gate patterns"""
    lanes = 8

    async def round(self):
        gate = {"any_of": [f"\\w{{100}}{i}" for i in range(128)]}
        return await self.post("/v1/fine_tuning/jobs", {"model": "base", "training_file": await self.need_file(), "gate": gate})


class JobsAndCancels(Attack):
    """training jobs that are cancelled"""
    lanes = 8

    async def round(self):
        body = json.dumps({"model": "base", "training_file": await self.need_file()}).encode()
        status, answer = await exchange(self.url, "POST", "/v1/fine_tuning/jobs", self.key, body)
        if status == 200:
            job = json.loads(answer)["id"]
            await exchange(self.url, "POST", f"/v1/fine_tuning/jobs/{job}/cancel", self.key)
        return status


class Training(Attack):
    """long training jobs, one after the other"""
    lanes = 2

    async def round(self):
        body = {"model": "base", "training_file": await self.need_file(2000), "hyperparameters": {"n_epochs": 10}}
        status = await self.post("/v1/fine_tuning/jobs", body)
        await asyncio.sleep(0.2)
        return status


class LargeTraining(Attack):
    """plans and jobs with rank 512 or with long rows, as large as the server takes"""
    lanes = 4

    async def need_long_rows(self):
        while self.file is None:
            self.file = await self.upload([{"prompt": "?", "completion": words(self.rng, length)} for length in (6000, 3000, 1500, 700) * 4])
            if self.file is None:
                await asyncio.sleep(0.5)
        return self.file

    async def round(self):
        rank, length = self.rng.choice([(512, 64), (128, 256), (16, 8192), (16, 2048), (8, 1024), (4, 512)])
        hyperparameters = {"rank": rank, "max_length": length, "too_long": "truncate", "batch_size": self.rng.choice([1, 4, 16])}
        body = {"model": "base", "training_file": await self.need_long_rows(), "hyperparameters": hyperparameters}
        return await self.post(self.rng.choice(["/v1/fine_tuning/plan", "/v1/fine_tuning/jobs"]), body)


class Uploads(Attack):
    """uploads side by side"""
    lanes = 8

    async def round(self):
        file = await self.upload([{"prompt": words(self.rng, 400), "completion": "x"} for _ in range(1000)])
        return 200 if file else 400


class Votes(Attack):
    """votes with long names"""
    lanes = 8

    async def round(self):
        name = "customer*1." + "0" * 1_000_000 + str(self.rng.randrange(1 << 60))
        return await self.post("/v1/votes", {"a": name, "b": "base", "winner": "a"})


class Idle(Attack):
    """600 idle connections without a key"""
    lanes = 600

    async def round(self):
        place = urlsplit(self.url)
        _, writer = await asyncio.open_connection(place.hostname, place.port)
        try:
            await asyncio.sleep(5)
        finally:
            writer.close()
        return 0


class SlowBodies(Attack):
    """bodies that arrive a byte at a time"""
    lanes = 600

    async def round(self):
        place = urlsplit(self.url)
        _, writer = await asyncio.open_connection(place.hostname, place.port)
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {place.netloc}\r\nAuthorization: Bearer {self.key}\r\nContent-Length: 4000000\r\n\r\n"
        writer.write(head.encode())
        try:
            for _ in range(50):
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.2)
        finally:
            writer.close()
        return 0


class WrongKeys(Attack):
    """requests with keys that do not exist"""
    lanes = 32

    async def round(self):
        return (await exchange(self.url, "POST", "/v1/completions", self.rng.randbytes(32).hex(), {"model": "base", "prompt": "Hi"}))[0]


ATTACKS = {kind.__name__.lower(): kind for kind in Attack.__subclasses__()}


async def attack(name, url):
    """Repeats an attack until the process ends. Prints the number of responses by status every second."""
    kind, counts = ATTACKS[name], {}
    key = KEYS["neighbour" if name == "neighbour" else "hostile"]
    one = kind(url, key)

    async def lane():
        while True:
            try:
                status = await one.round()
            except (OSError, IndexError, asyncio.IncompleteReadError, ValueError):
                status = "cut off"
                await asyncio.sleep(0.05)
            counts[status] = counts.get(status, 0) + 1

    lanes = [asyncio.create_task(lane()) for _ in range(kind.lanes)]
    while True:
        await asyncio.sleep(1)
        print(json.dumps({str(k): v for k, v in counts.items()}), flush=True)
        if failed := next((task for task in lanes if task.done()), None):
            failed.result()


# --- the measurement

async def first_token(url, rng):
    """The time to first token of one streamed request of the victim, in seconds, and its status."""
    body = {"model": "base", "prompt": words(rng, PROMPT), "max_tokens": NEW, "ignore_eos": True, "stream": True}
    start = time.perf_counter()
    reader, writer = await send(url, "POST", "/v1/completions", KEYS["victim"], json.dumps(body).encode())
    try:
        status, first = int((await reader.readline()).split()[1]), None
        while line := await reader.readline():
            if line.startswith(b"data: {") and first is None:
                first = time.perf_counter() - start
        return first, status
    finally:
        writer.close()


async def victim(url, seconds):
    """Times to first token and failures of the victim, and failures of /health."""
    times, failed, sick = [], [], 0
    rng, end = random.Random(1), time.monotonic() + seconds

    async def health():
        nonlocal sick
        while time.monotonic() < end:
            try:
                status, _ = await asyncio.wait_for(exchange(url, "GET", "/health", None), 2)
                sick += status != 200
            except (OSError, IndexError, asyncio.TimeoutError):
                sick += 1
            await asyncio.sleep(1)

    watch = asyncio.create_task(health())
    while time.monotonic() < end:
        try:
            first, status = await asyncio.wait_for(first_token(url, rng), 60)
            (times.append(first) if status == 200 and first else failed.append(status))
        except (OSError, IndexError, asyncio.TimeoutError) as error:
            failed.append(type(error).__name__)
        await asyncio.sleep(0.1)
    await watch
    return times, failed, sick


def measure(args, name, keys):
    """The figures of one attack, or of the baseline."""
    seconds = args.seconds * (BASELINE_TIMES if name == "neighbour" else 1)
    home = args.work / "hostile" / name
    home.mkdir(parents=True, exist_ok=True)
    port = free_port()
    command = [args.lory, "serve", "--base", args.base, "--port", port, "--keys", keys, "--drain-timeout", f"{DRAIN}s", "--train-memory", TRAIN_MEMORY,
               "--jobs-dir", home / "jobs", "--registry", home / "registry", "--personas", args.personas]
    os.environ["LORY_HOME"] = str(home)
    server = Server(command, port, "/ready")
    with server:
        peak, ended = server.resident(), False

        def sample():
            nonlocal peak
            while not ended:
                try:
                    peak = max(peak, server.resident())
                except (OSError, StopIteration):
                    return
                time.sleep(0.05)

        sampler = threading.Thread(target=sample)
        sampler.start()
        asyncio.run(victim(server.url, 2))
        attacker = subprocess.Popen(["nice", "-n", "19", sys.executable, __file__, "--attack", name, "--url", server.url],
                                    stdout=subprocess.PIPE, text=True)
        counts = {}
        reader = threading.Thread(target=lambda: [counts.update(json.loads(line)) for line in attacker.stdout])
        reader.start()
        # Some attacks upload a file first.
        for _ in range(120):
            if counts:
                break
            time.sleep(0.5)
        time.sleep(2)
        times, failed, sick = asyncio.run(victim(server.url, seconds))
        alive = server.process.poll() is None
        server.process.send_signal(signal.SIGTERM)
        start = time.monotonic()
        try:
            server.process.wait(DRAIN + 15)
        except subprocess.TimeoutExpired:
            server.process.kill()
        stopped = time.monotonic() - start
        ended = True
        attacker.kill()
        reader.join()
        sampler.join()
    return {"attack": name, "what": ATTACKS[name].__doc__, "requests": len(times), "failed": len(failed), "failures": failed[:5],
            "p50_ms": 1e3 * percentile(times, .5), "p95_ms": 1e3 * percentile(times, .95), "max_ms": 1e3 * percentile(times, 1),
            "peak_mib": peak / 2**20, "health_failures": sick, "alive": alive, "stop_s": stopped, "responses": counts}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("work", type=Path, nargs="?")
    p.add_argument("base", nargs="?")
    p.add_argument("--lory", default=HERE.parent / "target/release/lory")
    p.add_argument("--personas", type=Path, default=HERE.parent / "personas")
    p.add_argument("--only", default="", help="names of attacks, comma-separated")
    p.add_argument("--seconds", type=float, default=20)
    p.add_argument("--out", metavar="NAME", help="write NAME.json and NAME.md")
    p.add_argument("--attack", choices=ATTACKS, help=argparse.SUPPRESS)
    p.add_argument("--url", help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.attack:
        return asyncio.run(attack(args.attack, args.url))
    if not args.work or not args.base:
        p.error("WORK and BASE are needed")
    args.work.mkdir(parents=True, exist_ok=True)
    keys = args.work / "keys.toml"
    more = {"victim": "", "neighbour": "train = true\n", "hostile": "train = true\n", "ops": "admin = true\n"}
    keys.write_text("".join(f'[[key]]\nname = "{name}"\nsha256 = "{hashlib.sha256(secret.encode()).hexdigest()}"\n{more[name]}\n'
                            for name, secret in KEYS.items()))
    keys.chmod(0o600)
    plan = json.loads(output(args.lory, "doctor", "--base", args.base, "--train-memory", TRAIN_MEMORY, "--no-probe", "--json"))
    announced = plan["plan"]["peak_bytes"] / 2**20
    names = ["neighbour"] + [n for n in (args.only.split(",") if args.only else ATTACKS) if n != "neighbour"]
    results, lines = [], [
        f"{'attack':18}{'requests':>9}{'failed':>8}{'p50 ms':>9}{'p95 ms':>9}{'ratio':>7}{'peak MiB':>10}{'health':>8}{'stop s':>8}"]
    print(f"announced: {announced:.0f} MiB\n{lines[0]}", flush=True)
    missed = []
    for name in names:
        r = measure(args, name, keys)
        results.append(r)
        r["ratio"] = r["p95_ms"] / results[0]["p95_ms"]
        met = {"ratio": r["ratio"] <= 2, "failed": not r["failed"], "memory": r["peak_mib"] <= announced + 256e6 / 2**20,
               "health": not r["health_failures"], "alive": r["alive"], "stop": r["stop_s"] <= DRAIN + 1}
        r["missed"] = [target for target, held in met.items() if not held]
        missed += [(name, target) for target in r["missed"]]
        lines.append(f"{name:18}{r['requests']:9}{r['failed']:8}{r['p50_ms']:9.0f}{r['p95_ms']:9.0f}{r['ratio']:7.2f}"
                     f"{r['peak_mib']:10.0f}{r['health_failures']:8}{r['stop_s']:8.1f}  {' '.join(r['missed'])}")
        print(lines[-1], " ", r["responses"], flush=True)
    if args.out:
        about = machine(argparse.Namespace(threads=os.cpu_count()))
        Path(args.out + ".json").write_text(json.dumps({"machine": about, "announced_mib": announced, "results": results}, indent=1))
        notes = "\n".join(f"- `{r['attack']}`: {r['what']}; {ATTACKS[r['attack']].lanes} at a time" for r in results)
        Path(args.out + ".md").write_text(f"{about}\n\nAnnounced memory: {announced:.0f} MiB\n\n```\n" + "\n".join(lines) + f"\n```\n\n{notes}\n")
    for name, target in missed:
        print(f"missed: {name}: {target}", file=sys.stderr)
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
