#!/usr/bin/env python3
"""Hashes of results that a refactoring must not change: log-probabilities, answers, trained adapters, exported files.

    bench/golden.py target/release/lory --out before.json        # before the change
    bench/golden.py target/release/lory --compare before.json    # after it, on the same machine

Numbers are hashed as the server prints them, which is the shortest text that reads back as the same float, so equal hashes mean
equal bits. Results depend on the processor's instruction sets, so compare files of one machine only. Each entry is one hash;
`--compare` names those that differ and exits with 1. `--results DIR` also writes what was hashed, for finding out where two
binaries differ. The base comes from LORY_HOME and is fetched there if missing. Takes some minutes on two cores; only Python's
standard library is needed.
"""

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
PERSONAS = HERE.parent / "personas"
BASE = "smollm2-135m"
ROWS, EVAL_ROWS = 12, 2
BLEND = "customer*0.7+partner*0.3"
MODELS = [BASE, "customer", "partner", BLEND]
QUESTION = "What is the status of my order #12345?"
PROMPTS = [
    "The three primary colours are",
    "Dear customer, thank you for your message about order #48213. We",
    "def fibonacci(n):\n    if n <",
]
SCHEMA = {
    "type": "object", "additionalProperties": False, "required": ["topic", "urgent", "orders"],
    "properties": {
        "topic": {"enum": ["delivery", "payment", "other"]}, "urgent": {"type": "boolean"},
        "orders": {"type": "array", "maxItems": 3, "items": {"type": "string", "pattern": "^[0-9]{1,6}$"}},
    },
}
TOOL = {
    "type": "function",
    "function": {
        "name": "order_status", "description": "Looks an order up",
        "parameters": {
            "type": "object", "required": ["order"], "additionalProperties": False,
            "properties": {"order": {"type": "string", "pattern": "^[0-9]{1,10}$"}},
        },
    },
}
# A tiny model with random weights is enough to run every precision and both file formats.
TINY = "--layers 2 --hidden 128 --ffn 256 --heads 4 --kv-heads 2 --vocab 1024 --context 512".split()
PARTS = ["served", "trained", "tiny"]
PRECISIONS = ["f32", "bf16", "f16", "q8", "q4"]


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("lory", type=Path, help="the binary")
    p.add_argument("--out", type=Path, metavar="FILE", help="write the hashes here")
    p.add_argument("--compare", type=Path, metavar="FILE", help="compare with the hashes in this file")
    p.add_argument("--only", choices=PARTS, help="one part alone: shipped personas served, trained, or tiny random bases")
    p.add_argument("--results", type=Path, metavar="DIR", help="write every hashed result into this folder")
    return p.parse_args()


class Golden:
    """Collects hashes by name."""

    def __init__(self, results):
        self.hashes, self.results = {}, results
        if results:
            results.mkdir(parents=True, exist_ok=True)

    def add(self, name, result):
        """Bytes are hashed as they are; other values as JSON."""
        data = result if isinstance(result, bytes) else json.dumps(result, ensure_ascii=False, indent=1).encode()
        self.hashes[name] = hashlib.sha256(data).hexdigest()
        if self.results:
            (self.results / re.sub(r"[^\w.-]+", "_", name)).write_bytes(data)


def exact(text):
    """JSON with every float kept as its text."""
    return json.loads(text, parse_float=str)


class Lory:
    """The binary under test."""

    def __init__(self, path, home):
        self.path, self.home = path, home

    def environment(self, extra):
        return {**os.environ, "LORY_HOME": str(self.home), **(extra or {})}

    def run(self, *args, env=None, good=(0,)):
        command = [str(self.path), *map(str, args)]
        done = subprocess.run(command, env=self.environment(env), capture_output=True, text=True)
        if done.returncode not in good:
            sys.exit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr}")
        return done.stdout


class Server:
    """`lory serve` on a free port, with all of its state in `work`."""

    def __init__(self, lory, work, *args, env=None):
        state = ["--registry", work / "registry", "--jobs-dir", work / "jobs", "--port", 0]
        command = [str(lory.path), "serve", *map(str, state), *map(str, args)]
        self.log = open(work / "serve.log", "w+", encoding="utf-8")
        self.child = subprocess.Popen(
            command, env=lory.environment(env), stdout=subprocess.PIPE, stderr=self.log, text=True, cwd=work)
        self.url = None
        for line in self.child.stdout:
            if found := re.search(r"http://[\d.]+:\d+", line):
                self.url = found[0]
                break
        if not self.url:
            self.log.seek(0)
            sys.exit(f"{' '.join(command)}: it has ended\n{self.log.read()}")
        threading.Thread(target=self.child.stdout.read, daemon=True).start()
        while True:
            try:
                urllib.request.urlopen(self.url + "/ready").close()
                return
            except urllib.error.URLError:
                if self.child.poll() is not None:
                    self.log.seek(0)
                    sys.exit(self.log.read())
                time.sleep(0.1)

    def post(self, path, **body):
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request) as response:
                return exact(response.read())
        except urllib.error.HTTPError as error:
            sys.exit(f"{path} {body}: {error.code}\n{error.read().decode()}")

    def base(self):
        """What the base is called."""
        with urllib.request.urlopen(self.url + "/v1/models") as response:
            return json.load(response)["data"][0]["id"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.child.terminate()
        self.child.wait()
        self.log.close()


def logits(golden, name, server, model):
    """Log-probabilities of prompts and of their completions, with the 20 most probable tokens at each position."""
    body = {"model": model, "max_tokens": 8, "logprobs": 20, "echo": True, "ignore_eos": True, "temperature": 0}
    answer = server.post("/v1/completions", prompt=PROMPTS, **body)
    golden.add(name, [{"text": c["text"], "logprobs": c["logprobs"]} for c in answer["choices"]])


def chat(server, model, **more):
    answer = server.post(
        "/v1/chat/completions", model=model, messages=[{"role": "user", "content": QUESTION}], seed=11, **more)
    return [{key: c.get(key) for key in ("message", "logprobs", "finish_reason")} for c in answer["choices"]]


def served(golden, lory, work):
    """The base that ships, both tones and blends of them."""
    with Server(lory, work, "--base", BASE, "--personas", PERSONAS) as server:
        for model in MODELS:
            logits(golden, f"logits/{model}", server, model)
        tones = ["customer", "partner", BLEND, BASE, "customer*0.5", "partner", "customer", "partner*1.2+customer*-0.2",
                 BLEND, "partner"]
        for i, tone in enumerate(tones):
            sampling = {"temperature": 0.6 + 0.1 * (i % 4), "top_p": 1 - 0.05 * (i % 3), "top_k": 40 * (i % 2)}
            answer = server.post(
                "/generate", prompt=f"Where is my order #{48000 + 7 * i}?", user_type=tone, max_new_tokens=16, seed=1000 + i,
                **sampling)
            golden.add(f"answers/{i} {tone}", [answer[key] for key in ("response", "finish_reason", "usage", "persona")])
        golden.add("answers/several", chat(
            server, "customer", n=2, temperature=0.9, max_completion_tokens=16, logprobs=True, top_logprobs=2))
        golden.add("answers/penalties", chat(
            server, "partner", temperature=0.8, max_completion_tokens=16, min_p=0.05, repetition_penalty=1.2,
            frequency_penalty=0.3, presence_penalty=-0.2, logit_bias={"198": -5, "57": 2.5}, logprobs=True))
        schema = {"type": "json_schema", "json_schema": {"name": "ticket", "strict": True, "schema": SCHEMA}}
        for model in (BASE, "customer"):
            golden.add(f"answers/json {model}", chat(
                server, model, temperature=0.7, max_completion_tokens=64, response_format=schema, logprobs=True))
        calls = chat(server, "customer", temperature=0.7, max_completion_tokens=64, tools=[TOOL], tool_choice="required",
                     parallel_tool_calls=False)
        for call in calls[0]["message"].get("tool_calls") or []:
            call.pop("id")
        golden.add("answers/tool call", calls)


def small_personas(work):
    """A copy of the personas with the first rows that both tones answer, so that either can be preferred."""
    rows = {tone: {row["instruction"].strip(): row for row in map(json.loads, (PERSONAS / tone / "train.jsonl").open())}
            for tone in ("customer", "partner")}
    both = [question for question in rows["customer"] if question in rows["partner"]]
    folder = work / "personas"
    for tone, of in rows.items():
        shutil.copytree(PERSONAS / tone, folder / tone)
        parts = {"train": both[:ROWS], "eval": both[ROWS:ROWS + EVAL_ROWS]}
        for name, questions in parts.items():
            (folder / tone / f"{name}.jsonl").write_text("".join(json.dumps(of[q]) + "\n" for q in questions))
    return folder


def adapter(golden, name, folder):
    """The tensors, the whole file with its header, and the metrics of each step."""
    data = (folder / "adapter_model.safetensors").read_bytes()
    golden.add(f"{name} tensors", data[8 + int.from_bytes(data[:8], "little"):])
    golden.add(f"{name} file", data)
    golden.add(f"{name} config", (folder / "adapter_config.json").read_bytes())
    golden.add(f"{name} metrics", (folder / "metrics.jsonl").read_bytes())


def trained(golden, lory, work):
    """Supervised training of two tones in one run, preference tuning of one, their evaluation, and exported and merged files."""
    personas = small_personas(work)
    run = ["--base", BASE, "--personas", personas]
    lory.run("train", *run, "--persona", "customer", "--persona", "partner", "--max-steps", 2, "--batch-rows", 3,
             "--dropout", 0.1, "--rank", 8)
    for tone in ("customer", "partner"):
        adapter(golden, f"trained/{tone}", personas / tone / "adapter")
    lory.run("train", *run, "--persona", "customer", "--prefer-over", "partner", "--from", PERSONAS / "customer/adapter",
             "--max-steps", 2, "--batch-rows", 2, "--vary-identifiers", 0, "--dropout", 0.05, "--lr", "2e-4")
    adapter(golden, "trained/preference", personas / "customer/adapter")

    # Exit code 1 says that a threshold was missed, as it is after so little training.
    report = exact(lory.run("eval", *run, "--persona", "customer", "--limit", 2, "--json", good=(0, 1)))
    golden.add("measured", timeless(report))
    lory.run("persona", "export", "--gguf", "customer", "--out", work / "customer.gguf", *run)
    golden.add("exported", (work / "customer.gguf").read_bytes())
    lory.run("persona", "merge", "customer", "--out", work / "merged.gguf", "--limit", 0, *run)
    golden.hashes["merged"] = file_hash(work / "merged.gguf")


def timeless(value):
    """A report without its times."""
    if isinstance(value, dict):
        return {key: timeless(v) for key, v in value.items() if not re.search(r"seconds|_ms$|time|created|folder|path", key)}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def file_hash(path):
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tiny(golden, lory, work):
    """Tiny random bases, served and trained in each precision."""
    for script, base in (("random_folder.py", work / "tiny"), ("random_gguf.py", work / "tiny.gguf")):
        subprocess.run([sys.executable, HERE / script, base, *TINY], check=True, stdout=subprocess.DEVNULL)
    rows = (PERSONAS / "customer/train.jsonl").read_text().splitlines()[:6]
    (work / "tiny.jsonl").write_text("\n".join(rows))
    bases = [(work / "tiny", precision) for precision in PRECISIONS] + [(work / "tiny.gguf", "auto")]
    for base, precision in bases:
        flags = ["--base", base, "--precision", precision]
        name = f"{base.name} {precision}"
        with Server(lory, work, *flags, "--personas", work / "empty") as server:
            logits(golden, f"logits/{name}", server, server.base())
        out = work / f"trained {name}"
        lory.run("train", *flags, "--data", work / "tiny.jsonl", "--out", out, "--max-steps", 2, "--batch-rows", 2, "--rank", 4,
                 "--validation-fraction", 0)
        adapter(golden, f"trained/{name}", out)


def machine():
    """What results depend on, apart from the binary."""
    found = {"architecture": platform.machine(), "threads": os.cpu_count()}
    try:
        info = Path("/proc/cpuinfo").read_text()
    except OSError:
        return found
    for key, line in (("processor", "model name"), ("features", "flags|Features")):
        if hit := re.search(rf"^(?:{line})\s*:\s*(.*)$", info, re.M):
            found[key] = hit[1]
    sets = r"^(avx|avx2|fma|f16c|avx512\w*|avx_vnni|amx\w*|asimd\w*|sve\w*|i8mm|bf16)$"
    found["features"] = [flag for flag in found.get("features", "").split() if re.match(sets, flag)]
    return found | {"LORY_ISA": os.environ.get("LORY_ISA", "")}


def compare(ours, path, only):
    theirs = json.loads(path.read_text())
    if ours["machine"] != theirs["machine"]:
        print(f"another machine: {theirs['machine']}", file=sys.stderr)
    names = sorted(ours["hashes"].keys() if only else ours["hashes"].keys() | theirs["hashes"].keys())
    different = [name for name in names if ours["hashes"].get(name) != theirs["hashes"].get(name)]
    for name in different:
        print(f"different: {name}")
    print(f"{len(names) - len(different)} of {len(names)} results are the same")
    return not different


def main():
    args = arguments()
    golden = Golden(args.results)
    with tempfile.TemporaryDirectory(prefix="lory-golden-") as temporary:
        work = Path(temporary)
        (work / "empty").mkdir()
        binary = args.lory.resolve()
        if os.environ.get("LORY_HOME"):
            home = Path(os.environ["LORY_HOME"]).resolve()
        else:
            home = HERE.parent / "target/tmp/home"
        started = time.monotonic()
        Lory(binary, home).run("pull", BASE)
        for part, at in ((served, home), (trained, home), (tiny, work / "home")):
            if args.only not in (None, part.__name__):
                continue
            part(golden, Lory(binary, at), work)
            print(f"{part.__name__}: {time.monotonic() - started:.0f} s", file=sys.stderr)
    result = {"machine": machine(), "hashes": golden.hashes}
    text = json.dumps(result, indent=1) + "\n"
    if args.out:
        args.out.write_text(text)
    if args.compare:
        sys.exit(0 if compare(result, args.compare, args.only) else 1)
    if not args.out:
        print(text, end="")


if __name__ == "__main__":
    main()
