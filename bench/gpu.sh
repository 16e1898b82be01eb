#!/usr/bin/env bash
# Everything that only a graphics card can show, in a few minutes: the tests, both shipped tones, and speeds. Keeps what it found in
# FOLDER. It has not run on a card yet.
#
#     bench/gpu.sh FOLDER [DEVICE]          DEVICE as `lory doctor` lists it, by default vulkan:0, which the tests use too
#
# Build first, so that the time on the card goes to measurements: cargo build --release -p lory && cargo test --workspace --no-run
set -euo pipefail
out=$(realpath -m "${1:?usage: bench/gpu.sh FOLDER [DEVICE]}")
device=${2:-vulkan:0}
cd "$(dirname "$0")/.."
mkdir -p "$out"
lory=target/release/lory
kept() { printf '\n== %s\n' "${*:2}"; "${@:2}" 2>> "$out/stderr.txt" | tee "$out/$1"; }

git rev-parse HEAD > "$out/commit.txt"
kept doctor.json $lory doctor --base smollm2-135m --device "$device" --json
# The tests: every kernel, the decoder, mixed tones over HTTP, and both tones against the CPU's answers.
export LORY_TEST_GPU=required
kept kernels.txt cargo test -p gpu --lib
kept model.txt cargo test -p model --test gpu
kept serving.txt cargo test -p lory --test serving card
kept tones.txt cargo test -p lory --test real_base tones -- --nocapture
kept demo.txt $lory demo --once --device "$device"
# Speeds: the small base, and the shape of an 8B base in 4 bits, from 1 to 64 rows, with no adapters and with 8.
kept small.json $lory bench --device "$device" --rows 1,2,4,8,16,32,64 --adapters 0,8 --rounds 3 --json
random=$out/random-8b.gguf
[ -e "$random" ] || python3 bench/random_gguf.py "$random"
kept 8b.json $lory bench --base "$random" --device "$device" --rows 1,2,4,8,16,32,64 --adapters 0,8 --rounds 3 --json
kept 8b-doctor.json $lory doctor --base "$random" --device "$device" --json
rm "$random"
