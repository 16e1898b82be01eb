"""Trains with PEFT, in float32, on the same data as crates/train/tests/curve, and writes the losses for that test.

Needs: pip install torch transformers peft gguf safetensors
    cargo run -p train --example curve -- DIR
    python bench/peers/make_curve_fixture.py DIR crates/train/tests/curve/peft.json
"""

import json
import math
import os
import sys

import peft
import torch
from peft import PeftModel

sys.path.insert(0, os.path.dirname(__file__))
from base_to_hf import load

folder, out = sys.argv[1:]
run = json.load(open(os.path.join(folder, "run.json")))
settings, rows = run["settings"], run["rows"]
model = PeftModel.from_pretrained(load(os.path.join(folder, "base.gguf")), os.path.join(folder, "start"), is_trainable=True)
model.train()
trained = [p for p in model.parameters() if p.requires_grad]
optimizer = torch.optim.AdamW(trained, lr=settings["lr"], betas=(0.9, 0.999), eps=1e-8, weight_decay=settings["weight_decay"])
batch = settings["batch_rows"]
steps = settings["epochs"] * len(rows) // batch
warmup = math.ceil(settings["warmup_ratio"] * steps)


def rate(step):
    """A linear warm-up that starts one step later than that of transformers, then a linear decay to 0."""
    return (step + 1) / warmup if step < warmup else 1 - (step - warmup) / (steps - warmup)


schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
losses, norms = [], []
for step in range(steps):
    some = [rows[(step * batch + i) % len(rows)] for i in range(batch)]
    width = max(len(row["tokens"]) for row in some)
    pad = lambda values, filler: values + [filler] * (width - len(values))
    tokens = torch.tensor([pad(row["tokens"], 0) for row in some])
    mask = torch.tensor([pad([1] * len(row["tokens"]), 0) for row in some])
    labels = torch.tensor([pad([t if k else -100 for t, k in zip(row["tokens"], row["trained"])], -100) for row in some])
    loss = model(input_ids=tokens, attention_mask=mask, labels=labels).loss
    optimizer.zero_grad()
    loss.backward()
    norms.append(torch.nn.utils.clip_grad_norm_(trained, settings["clip"]).item())
    optimizer.step()
    schedule.step()
    losses.append(loss.item())
with open(out, "w") as file:
    json.dump({"peft": peft.__version__, "torch": torch.__version__, "losses": losses, "gradient_norms": norms}, file, indent=1)
    file.write("\n")
print(f"{out}: {steps} steps, loss {losses[0]:.4f} to {losses[-1]:.4f}")
