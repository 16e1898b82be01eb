"""Loads a Lory adapter with PEFT on the dequantized base, and compares its logits with Lory's float path.

Needs: pip install torch transformers peft gguf safetensors, and a Rust toolchain.
    python bench/peers/peft_parity.py BASE.gguf personas/customer/adapter [more adapters]

Prints the largest difference, relative to the largest logit, for each adapter; exit code 1 above 1e-3.
"""

import os
import subprocess
import sys
import tempfile

import torch
from peft import PeftModel
from safetensors.torch import load_file

sys.path.insert(0, os.path.dirname(__file__))
from base_to_hf import load

base, adapters = sys.argv[1], sys.argv[2:]
tokens = torch.tensor([(i * 2654435761) % 49152 for i in range(64)])
worst = 0.0
for adapter in adapters:
    with tempfile.TemporaryDirectory() as folder:
        out = os.path.join(folder, "logits.safetensors")
        command = ["cargo", "run", "--quiet", "--release", "--example", "logits", "--", base, adapter, out]
        subprocess.run(command + [str(t) for t in tokens.tolist()], check=True)
        ours = load_file(out)["logits"]
    model = load(base)
    with torch.no_grad():
        bare = model(tokens[None]).logits[0]
        model = PeftModel.from_pretrained(model, adapter).float().eval()
        theirs = model(tokens[None]).logits[0]
    scale = theirs.abs().max().item()
    difference = (ours - theirs).abs().max().item() / scale
    moved = (theirs - bare).abs().max().item() / scale
    worst = max(worst, difference)
    print(f"{adapter}: Lory and PEFT differ by {difference:.2e} of the largest logit; the adapter moves logits by {moved:.2f}")
sys.exit(worst > 1e-3)
