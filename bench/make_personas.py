#!/usr/bin/env python3
"""Makes COUNT personas from one adapter, each in its own folder and with different seeded noise in the adapter, so that
no two have the same content hash. For load tests; all of them have the tone of the original adapter.

    bench/make_personas.py personas/customer /tmp/many 1000
"""
import argparse
import array
import json
import random
import shutil
import struct
from pathlib import Path


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("source", type=Path, help="a persona's folder with adapter/ in bf16")
    p.add_argument("to", type=Path)
    p.add_argument("count", type=int)
    p.add_argument("--seed", type=int, default=1)
    args = p.parse_args()
    blob = (args.source / "adapter/adapter_model.safetensors").read_bytes()
    head = struct.unpack("<Q", blob[:8])[0]
    header = json.loads(blob[8 : 8 + head])
    if any(t["dtype"] != "BF16" for name, t in header.items() if name != "__metadata__"):
        p.error("the adapter must be in BF16")
    for i in range(args.count):
        rng = random.Random(args.seed * 1_000_003 + i)
        values = array.array("H")
        values.frombytes(blob[8 + head :])
        # Changes the lowest bit of the mantissa of a few thousand values: a different hash, the same tone.
        for at in rng.sample(range(len(values)), 4096):
            values[at] ^= 1
        folder = args.to / f"tone{i}"
        (folder / "adapter").mkdir(parents=True, exist_ok=True)
        (folder / "persona.toml").write_text(f'description = "Load test tone {i}"\nversion = 1\n')
        shutil.copy(args.source / "adapter/adapter_config.json", folder / "adapter")
        (folder / "adapter/adapter_model.safetensors").write_bytes(blob[: 8 + head] + values.tobytes())


if __name__ == "__main__":
    main()
