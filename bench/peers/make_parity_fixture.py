"""Writes the logits of transformers on the dequantized demo base, for the parity test of crates/lory/tests/real_base.

Needs: pip install torch transformers gguf safetensors
    python bench/peers/make_parity_fixture.py BASE.gguf crates/lory/tests/real_base/parity.safetensors

The fixture holds `tokens` (meaningless input ids), `columns` (indices into the vocabulary) and `logits` (tokens x
columns, float32, computed in float32).
"""

import os
import sys

import torch
from safetensors.torch import save_file

sys.path.insert(0, os.path.dirname(__file__))
from base_to_hf import load

model = load(sys.argv[1])
vocabulary = model.config.vocab_size
tokens = torch.tensor([(i * 2654435761) % vocabulary for i in range(80)])
columns = torch.arange(0, vocabulary, 257)
with torch.no_grad():
    logits = model(tokens[None]).logits[0]
save_file({"tokens": tokens.int(), "columns": columns.int(), "logits": logits[:, columns].contiguous()}, sys.argv[2])
print(f"{sys.argv[2]}: {len(tokens)} tokens, {len(columns)} columns, torch {torch.__version__}")
