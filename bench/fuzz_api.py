#!/usr/bin/env python3
"""Uses schemathesis to send requests that the OpenAPI document allows or forbids. Fails on a 5xx and on a response that the
document does not describe. The base is small and random. Two personas are trained for one step, so that a file, a job,
an evaluation, a registry and a canary exist.

    pip install schemathesis
    cargo build --release && bench/fuzz_api.py target/release/lory                    # some minutes
    bench/fuzz_api.py target/release/lory --examples 200 --seed 7 --keep DIR

Exits with schemathesis' exit code; each finding is printed with a curl command.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
import zipfile

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
ROWS = 12


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lory", type=pathlib.Path)
    parser.add_argument("--schemathesis", default="schemathesis", help="the program")
    parser.add_argument("--examples", type=int, default=50, help="examples per operation")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--checks", default=CHECKS)
    parser.add_argument("--keep", type=pathlib.Path, help="a folder for the server's log and schemathesis' configuration")
    return parser.parse_args()


class Server:
    """`lory serve` with a temporary home folder."""

    def __init__(self, lory, home):
        self.home = home
        self.environment = {**os.environ, "LORY_HOME": str(home / "home")}
        self.lory = str(lory.resolve())
        base = [sys.executable, REPOSITORY / "bench/random_gguf.py", home / "tiny.gguf"]
        shape = "--layers 2 --hidden 64 --ffn 128 --heads 4 --kv-heads 2 --vocab 512"
        subprocess.run([*base, *shape.split()], check=True)
        for name in ("customer", "partner"):
            folder = home / "personas" / name
            folder.mkdir(parents=True)
            shutil.copy(REPOSITORY / "personas" / name / "persona.toml", folder)
            for rows in ("train", "eval", "test"):
                given = (REPOSITORY / "personas" / name / f"{rows}.jsonl").read_text().splitlines(keepends=True)
                (folder / f"{rows}.jsonl").write_text("".join(given[:ROWS]))
            self.run("train", "--persona", name, "--base", "tiny.gguf", "--max-steps", "1")
        self.log = open(home / "server.log", "wb")
        self.process = subprocess.Popen(
            [self.lory, "serve", "--base", "tiny.gguf", "--personas", "personas", "--adapter-root", "personas", "--port", "0"],
            cwd=home,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )
        self.address = None
        for line in self.process.stdout:
            if "Serving http://" in line:
                self.address = "http://" + line.split("http://")[1].split()[0]
            if "curl" in line:
                break
        if self.address is None:
            sys.exit((home / "server.log").read_text())

    def run(self, *words):
        ran = subprocess.run([self.lory, *words], cwd=self.home, env=self.environment, capture_output=True, text=True)
        if ran.returncode != 0:
            sys.exit(f"lory {' '.join(words)}\n{ran.stdout}{ran.stderr}")

    def ask(self, path, body=None, kind="application/json"):
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, {"Content-Type": kind})
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    def upload(self):
        rows = (self.home / "personas/customer/train.jsonl").read_bytes()
        edge = b"--an-edge-of-the-form"
        head = b'\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
        parts = edge + head % (b"purpose", b"", b"fine-tune")
        parts += edge + head % (b"file", b'; filename="rows.jsonl"', rows) + edge + b"--\r\n"
        return self.ask("/v1/files", parts, "multipart/form-data; boundary=an-edge-of-the-form")["id"]

    def waits(self, path):
        while self.ask(path)["finished_at"] is None:
            time.sleep(0.1)


def create_objects(server):
    """Creates one object of each kind. Returns schemathesis' configuration, with their names for paths, and its environment."""
    kept, given_up = server.upload(), server.upload()
    job = {"model": "base", "training_file": kept, "suffix": "tried", "publish": False}
    job = server.ask("/v1/fine_tuning/jobs", {**job, "hyperparameters": {"n_epochs": 1}})["id"]
    evaluation = server.ask("/v1/evaluations", {"personas": ["customer"], "max_rows": 1})["id"]
    for persona in ("customer", "partner"):
        server.ask("/v1/personas/acted/versions", {"adapter_path": f"{persona}/adapter"})
    server.waits(f"/v1/fine_tuning/jobs/{job}")
    server.waits(f"/v1/evaluations/{evaluation}")
    named = {"name": "acted", "alias": "other", "job_id": job, "id": evaluation, "file_id": kept, "file": "dom.js"}
    # Names for request bodies.
    bodies = {
        "model": "customer",
        "user_type": "partner*0.5+customer*0.5",
        "messages": [{"role": "user", "content": "Where is my order?"}],
        "prompt": "Where is it?",
        "max_tokens": 4,
        "max_completion_tokens": 4,
        "max_new_tokens": 4,
        "training_file": kept,
        "validation_file": kept,
        "file": kept,
        "hyperparameters": {"n_epochs": 1},
        "suffix": "tried",
        "personas": ["customer", "partner@1"],
        "adapter_path": "partner/adapter",
        "lora_name": "loaded",
        "lora_path": "customer/adapter",
        "target": "acted@1",
        "version": 1,
        "a": "customer@1",
        "b": "partner@1",
    }
    os.environ["FUZZ_API_NAMED"] = json.dumps(bodies)
    lines = ["[parameters]", *(f'"path.{name}" = "{value}"' for name, value in named.items())]
    lines += ["", "[[operations]]", 'include-path = "/v1/files/{file_id}"', 'include-method = "DELETE"']
    lines += [f'parameters = {{ "path.file_id" = "{given_up}" }}']
    archive = server.home / "adapter.zip"
    with zipfile.ZipFile(archive, "w") as parts:
        for part in (server.home / "personas/customer/adapter").glob("adapter_*"):
            parts.write(part, part.name)
    os.environ["FUZZ_API_ARCHIVE"] = str(archive)
    os.environ["PYTHONPATH"] = str(REPOSITORY / "bench")
    os.environ["SCHEMATHESIS_HOOKS"] = "fuzz_api_hooks"
    return "\n".join(lines) + "\n"


def main():
    given = arguments()
    program = shutil.which(given.schemathesis) or sys.exit(f"{given.schemathesis}: program not found; pip install schemathesis")
    with tempfile.TemporaryDirectory() as folder:
        home = (given.keep or pathlib.Path(folder)).resolve()
        home.mkdir(parents=True, exist_ok=True)
        server = Server(given.lory, home)
        (home / "schemathesis.toml").write_text(create_objects(server))
        words = [os.path.abspath(program), "--config-file", home / "schemathesis.toml", "run", server.address + "/openapi.json"]
        words += ["--checks", given.checks, "--max-examples", str(given.examples), "--seed", str(given.seed)]
        try:
            code = subprocess.run(words, cwd=home).returncode
            alive = server.process.poll() is None and server.ask("/health")
            print("the server responds" if alive else "the server has ended")
        finally:
            server.process.terminate()
            server.process.wait()
        panics = (home / "server.log").read_text(errors="replace").count("panicked")
        print(f"panics in the server's log: {panics}")
        return code or int(not alive or panics > 0)


if __name__ == "__main__":
    sys.exit(main())
