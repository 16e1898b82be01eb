#!/usr/bin/env python3
"""Checks that popular clients of OpenAI's API work with `lory serve`: their tool loop, structured output and streams.

    cargo build --release
    bench/clients.py WORK BASE.gguf [--lory target/release/lory] [--latest] [--only NAME ...] [--out bench/runs/NAME]

Starts one server with the base alone and runs a script of `bench/clients/` for each client, with the client's default settings: OpenAI's
clients for Python and Node, LangChain, LiteLLM, instructor and the Vercel AI SDK. Each client is installed into its own folder of
WORK, in the version below, or in its newest with `--latest`. Needs PyPI, npm and node.

What is judged is the protocol, not the wit: a base of 135 million parameters seldom calls a tool by itself, so the first request of
a tool loop has `tool_choice` set to `required` or to the tool's name, and the second one may answer with anything. Arguments and
structured outputs must match their schemas. OpenAI's clients are also tested on every change, with a tiny base
(`crates/lory/tests/clients`); their scripts here only add their loops on a real base.

Prints a table of clients and checks. The exit status is 1 if a check failed.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from compare import HERE, Server, free_port, machine

CHECKS = ("tools", "structured", "streaming")
OPENAI = (HERE.parent / "crates/lory/tests/clients/requirements.txt").read_text().split()
OPENAI_NODE = json.loads((HERE.parent / "crates/lory/tests/clients/package.json").read_text())["dependencies"]
# Client: its script, and the packages that it needs.
CLIENTS = {
    "OpenAI for Python": ("openai_client.py", OPENAI),
    "OpenAI for Node": ("openai_client.mjs", [f"{name}@{version}" for name, version in OPENAI_NODE.items()]),
    "LangChain": ("langchain_client.py", ["langchain-openai==1.7.4"]),
    "LiteLLM": ("litellm_client.py", ["litellm==1.110.2"]),
    "instructor": ("instructor_client.py", ["instructor==1.17.0"]),
    "Vercel AI SDK": ("ai_sdk.mjs", ["ai@6.0.326", "@ai-sdk/openai-compatible@2.0.92", "@ai-sdk/openai@3.0.141", "zod@4.6.7"]),
}
# How long a client may take, in seconds.
TIMEOUT = 1800


def install(folder, script, packages):
    """The command that runs the script, with its packages installed into the folder."""
    marker, wanted = folder / "installed", "\n".join(packages)
    if not marker.is_file() or marker.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if script.endswith(".py"):
            subprocess.run([sys.executable, "-m", "venv", folder], check=True)
            pip = [folder / "bin/pip", "install", "--quiet", "--disable-pip-version-check"]
            subprocess.run([*pip, *packages], check=True)
        else:
            npm = ["npm", "install", "--prefix", folder, "--silent", "--no-audit", "--no-fund"]
            subprocess.run([*npm, *packages], check=True)
        marker.write_text(wanted)
    return [folder / "bin/python"] if script.endswith(".py") else ["node"]


def newest(package):
    """The package without its version."""
    return package[0] + package[1:].split("@")[0].split("==")[0]


def run_client(name, server, model, work, latest):
    script, packages = CLIENTS[name]
    if latest:
        packages = [newest(package) for package in packages]
    folder = work / ("latest" if latest else "pinned") / script
    command = [*install(folder, script, packages), HERE / "clients" / script, server.url, model, folder]
    try:
        ran = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=TIMEOUT)
        sys.stderr.write(ran.stderr)
        return json.loads(ran.stdout.strip().splitlines()[-1])
    except (subprocess.TimeoutExpired, IndexError, ValueError) as error:
        reason = f"no result: {type(error).__name__}"
        return {"version": script, "results": dict.fromkeys(CHECKS, reason)}


def aligned(rows):
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("base", type=Path)
    parser.add_argument("--lory", type=Path, default=HERE.parent / "target/release/lory")
    parser.add_argument("--latest", action="store_true", help="the newest version of each client")
    parser.add_argument("--only", action="append", choices=CLIENTS, help="this client only; may be given several times")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    work = args.work.absolute()
    (work / "personas").mkdir(parents=True, exist_ok=True)
    os.environ["LORY_HOME"] = str(work / "home")
    port, found = free_port(), {}
    command = [args.lory, "serve", "--base", args.base, "--personas", work / "personas", "--port", port]
    with Server(command, port, "/ready") as server:
        model = args.base.stem.lower()
        for name in args.only or CLIENTS:
            print(name, file=sys.stderr, flush=True)
            found[name] = run_client(name, server, model, work, args.latest)

    word = lambda reason: "pass" if reason is None else "FAIL"
    rows = [["client", *CHECKS, "versions"]]
    rows += [[name, *(word(one["results"][check]) for check in CHECKS), one["version"]] for name, one in found.items()]
    failures = [f"{name}, {check}: {reason}" for name, one in found.items() for check, reason in one["results"].items() if reason]
    where = machine(argparse.Namespace(threads=os.cpu_count()))
    text = "\n".join([aligned(rows), *failures])
    print(text)
    if args.out:
        head = "Clients of OpenAI's API with `lory serve`. {cpu}, {cores} cores, {commit}, {date}.".format(**where)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        Path(f"{args.out}.md").write_text(f"{head}\n\n```text\n{text}\n```\n")
        Path(f"{args.out}.json").write_text(json.dumps({"machine": where, "base": args.base.name, "clients": found}, indent=1) + "\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
