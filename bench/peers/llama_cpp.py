#!/usr/bin/env python3
"""Builds llama.cpp for comparison, from the sources in llama-cpp-python 0.3.36, and converts Lory's inputs for it: the
same base, requantized to Q4_0 (llama.cpp's fastest format), and the same adapters as GGUF.

Needs: a C++ compiler, and: pip install cmake scikit-build-core torch transformers gguf safetensors
    python bench/peers/llama_cpp.py WORK BASE.gguf [PERSONA ...]

Leaves in WORK: bin/ (llama-bench, llama-batched-bench, llama-server), q4_0.gguf, lora0.gguf, lora1.gguf, ... Existing files are
not made again.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

VERSION = "0.3.36"
PROGRAMS = ["llama-bench", "llama-batched-bench", "llama-server", "llama-quantize"]
HERE = Path(__file__).resolve().parent


def run(*command, **more):
    print("+", *command, file=sys.stderr)
    subprocess.run([str(part) for part in command], check=True, **more)


def sources(work):
    name = f"llama_cpp_python-{VERSION}"
    if not (work / name).exists():
        run(sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "--no-build-isolation",
            "--dest", work, f"llama-cpp-python=={VERSION}")
        with tarfile.open(work / f"{name}.tar.gz") as archive:
            archive.extractall(work, filter="data")
    return work / name / "vendor/llama.cpp"


def build(work, llama):
    if all((work / "bin" / program).exists() for program in PROGRAMS):
        return
    run("cmake", "-S", llama, "-B", work / "build", "-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON",
        "-DBUILD_SHARED_LIBS=OFF", "-DLLAMA_CURL=OFF", "-DLLAMA_OPENSSL=OFF", "-DLLAMA_BUILD_TESTS=OFF",
        "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_UI=OFF")
    run("cmake", "--build", work / "build", "-j", os.cpu_count(), "--target", *PROGRAMS)
    (work / "bin").mkdir(exist_ok=True)
    for program in PROGRAMS:
        shutil.copy2(work / "build/bin" / program, work / "bin" / program)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("work", type=Path)
    p.add_argument("base", type=Path)
    p.add_argument("personas", type=Path, nargs="*", help="folders with adapter/")
    args = p.parse_args()
    work = args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    llama = sources(work)
    build(work, llama)
    if not (work / "q4_0.gguf").exists():
        run(work / "bin/llama-quantize", "--allow-requantize", args.base, work / "q4_0.part", "Q4_0")
        (work / "q4_0.part").rename(work / "q4_0.gguf")
    if args.personas and not (work / "hf/config.json").exists():
        run(sys.executable, HERE / "base_to_hf.py", args.base, work / "hf")
    for index, persona in enumerate(args.personas):
        if not (work / f"lora{index}.gguf").exists():
            run(sys.executable, llama / "convert_lora_to_gguf.py", persona / "adapter", "--base", work / "hf",
                "--outfile", work / f"lora{index}.gguf", "--outtype", "bf16")


if __name__ == "__main__":
    main()
