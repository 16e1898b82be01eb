#!/usr/bin/env python3
"""Checks the files of `lory persona export` and `lory persona merge` with llama.cpp.

Each persona's exported file is compared, tensor by tensor, with the output of llama.cpp's own converter for the same PEFT folder.
Then llama-server answers evaluation questions greedily with either file, and with the merged one, and Lory answers them too.

Needs the files of bench/peers/llama_cpp.py in WORK (run with at least one persona, so that WORK/hf exists), and:
    pip install torch transformers gguf safetensors
    python bench/peers/lora_gguf.py WORK BASE.gguf target/release/lory personas [NAME ...] [--questions 20]

Prints one line per persona. The exit code is 1 if a tensor differs by more than the rounding of f32, or if llama.cpp's answers
differ between our file and the converter's. Lory's texts may diverge from them at near ties, because llama.cpp rounds activations
differently; the script prints how far they agree.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import gguf
import numpy as np

from llama_cpp import sources


def tensors(path):
    """(name -> float32 array, adapter.lora.alpha)"""
    reader = gguf.GGUFReader(path)
    alpha = reader.fields["adapter.lora.alpha"]
    arrays = {t.name: gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float32) for t in reader.tensors}
    return arrays, float(alpha.parts[alpha.data[0]][0])


def compare(ours, theirs, scale):
    """The largest difference of alpha/rank-scaled B and of A, by the largest value; `scale` is the persona's own."""
    (mine, alpha), (other, other_alpha) = tensors(ours), tensors(theirs)
    assert set(mine) == set(other), f"names differ: {set(mine) ^ set(other)}"
    worst = 0.0
    for name, wanted in other.items():
        found = mine[name]
        assert found.shape == wanted.shape, f"{name}: {found.shape} {wanted.shape}"
        if name.endswith("lora_b"):
            found, wanted = found * alpha, wanted * other_alpha * scale
        worst = max(worst, np.abs(found - wanted).max() / max(np.abs(wanted).max(), 1e-30))
    return len(mine), float(worst)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    def __init__(self, *command, ready="/health"):
        self.port = free_port()
        command = [str(part) for part in command] + ["--port", str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}{ready}").read()
                return
            except OSError:
                if self.process.poll() is not None:
                    sys.exit(f"ended with {self.process.returncode}: {' '.join(command)}")
                time.sleep(0.1)
        sys.exit("did not start: " + " ".join(command))

    def post(self, route, body):
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{route}", json.dumps(body).encode(),
                                         {"content-type": "application/json"})
        return json.load(urllib.request.urlopen(request))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()


def llama(work, model, lora=None):
    adapter = ["--lora", lora] if lora else []
    return Server(work / "bin/llama-server", "-m", model, "-c", "2048", "-np", "1", "-t", os.cpu_count(), *adapter)


def prompts(server, system, questions):
    """The questions as token ids, through the base's own template."""
    ids = []
    for question in questions:
        turns = [{"role": "system", "content": system}] if system else []
        text = server.post("/apply-template", {"messages": turns + [{"role": "user", "content": question}]})["prompt"]
        ids.append(server.post("/tokenize", {"content": text, "add_special": False, "parse_special": True})["tokens"])
    return ids


def answers(server, ids, new):
    ask = lambda p: server.post("/completion", {"prompt": p, "n_predict": new, "temperature": 0, "samplers": ["temperature"],
                                                "cache_prompt": False})
    return [ask(p)["content"] for p in ids]


def agreement(a, b):
    """(number of equal texts, mean share of the shorter text before they diverge)"""
    shares = []
    for x, y in zip(a, b):
        common = next((i for i, (p, q) in enumerate(zip(x, y)) if p != q), min(len(x), len(y)))
        shares.append(1.0 if x == y else common / max(1, min(len(x), len(y))))
    return sum(x == y for x, y in zip(a, b)), sum(shares) / len(shares)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("work", type=Path)
    p.add_argument("base", type=Path)
    p.add_argument("lory", type=Path)
    p.add_argument("personas", type=Path)
    p.add_argument("names", nargs="*")
    p.add_argument("--questions", type=int, default=20)
    p.add_argument("--new", type=int, default=64)
    args = p.parse_args()
    work, lory = args.work.resolve(), args.lory.resolve()
    converter = sources(work) / "convert_lora_to_gguf.py"
    names = args.names or sorted(d.name for d in args.personas.iterdir() if (d / "adapter").is_dir())
    failed = False
    for name in names:
        folder = args.personas / name
        ours, theirs, merged = (work / f"{name}.{kind}.gguf" for kind in ("lory", "converter", "merged"))
        of_lory = ["--base", args.base, "--personas", args.personas]
        run = lambda *command: subprocess.run([str(c) for c in command], check=True, stdout=subprocess.PIPE, text=True,
                                              stderr=subprocess.DEVNULL).stdout
        report = json.loads(run(lory, "persona", "export", *of_lory, "--gguf", name, "--out", ours, "--json"))
        run(lory, "persona", "merge", *of_lory, name, "--out", merged, "--type", "f16", "--json")
        run(sys.executable, converter, folder / "adapter", "--base", work / "hf", "--outfile", theirs, "--outtype", "f32")
        count, worst = compare(ours, theirs, report["scale"])
        rows = [json.loads(line) for line in open(folder / "eval.jsonl")][: args.questions]
        questions = [row["instruction"] + ("\n\n" + row["input"] if row.get("input") else "") for row in rows]
        with llama(work, args.base, ours) as server:
            ids = prompts(server, report["system_prompt"], questions)
            mine = answers(server, ids, args.new)
        # The converter does not know the persona's scale.
        with llama(work, args.base) as server:
            bare = answers(server, ids, args.new)
        with Server(work / "bin/llama-server", "-m", args.base, "-c", "2048", "-np", "1", "-t", os.cpu_count(),
                    "--lora-scaled", f"{theirs}:{report['scale']}") as server:
            other = answers(server, ids, args.new)
        with llama(work, merged) as server:
            of_merged = answers(server, ids, args.new)
        with Server(lory, "serve", *of_lory, ready="/ready") as server:
            complete = lambda i: server.post("/v1/completions", {"model": name, "prompt": i, "max_tokens": args.new,
                                                                 "temperature": 0})["choices"][0]["text"]
            of_lory = [complete(i) for i in ids]
        failed |= worst > 1e-6 or mine != other
        print(f"{name}: {count} tensors, largest relative difference {worst:.1e}; of {len(ids)} greedy answers of "
              f"llama-server with our file, (the same, mean share before they part):")
        for what, texts in [("with the converter's file", other), ("Lory itself", of_lory), ("merged, f16", of_merged),
                            ("without adapter", bare)]:
            same, share = agreement(mine, texts)
            print(f"  {what:26} {same:3} the same, {share:.2f}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
