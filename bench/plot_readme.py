#!/usr/bin/env python3
"""Draws the README's chart from a kept run of bench/compare.py: medians of its rounds as bars, the range of the rounds as lines.

    bench/plot_readme.py bench/runs/2026-11-24-xeon-2-cores.json docs/benchmark.svg

Only the Python standard library is needed. `--check` writes nothing and exits with 1 if the file differs.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

# Names in the run, labels in the chart.
SYSTEMS = [
    ("lory", "Lory"),
    ("llama.cpp Q4_0", "llama.cpp"),
    ("PyTorch bf16 / PEFT", "PEFT"),
]
# Title, key of a client's figures in a round, factor, format.
PANELS = [
    ("New tokens per second", "higher is better", "new_tokens_per_s", 1, "{:,.0f}"),
    ("Time to first token, p95, in seconds", "lower is better", "ttft_p95_ms", 1e-3, "{:.2g}"),
]
WIDTH, MARGIN, LABELS, NUMBERS = 760, 24, 80, 56
BAR, GAP, HEAD, PANEL_HEAD = 22, 10, 66, 40

STYLE = """
  text { font: 13px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #24292f; }
  .title { font-size: 16px; font-weight: 600; }
  .panel { font-weight: 600; }
  .note { font-size: 12px; fill: #57606a; }
  .page { fill: #ffffff; }
  .ours { fill: #b4562a; }
  .other { fill: #b5bcc4; }
  .axis { stroke: #8c959f; }
  .range { stroke: #24292f; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3; }
    .note { fill: #9198a1; }
    .page { fill: #0d1117; }
    .ours { fill: #f0a06d; }
    .other { fill: #545d68; }
    .axis { stroke: #656c76; }
    .range { stroke: #e6edf3; }
  }
"""


def text(x, y, words, kind="", anchor="start"):
    words = words.replace("&", "&amp;").replace("<", "&lt;")
    return f'<text x="{x:.0f}" y="{y:.0f}" class="{kind}" text-anchor="{anchor}">{words}</text>'


def line(x1, y1, x2, y2, kind):
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def panel(rounds, top, title, better, key, factor, form):
    """One group of bars, on a linear scale from 0; returns its lines and its lower edge."""
    figures = {name: [one[name]["tones"][key] * factor for one in rounds] for name, _ in SYSTEMS}
    left, right = MARGIN + LABELS, WIDTH - MARGIN - NUMBERS
    scale = (right - left) / max(max(values) for values in figures.values())
    parts = [text(MARGIN, top + 16, f"{title} ({better})", "panel")]
    y = top + PANEL_HEAD - 8
    for name, label in SYSTEMS:
        values = figures[name]
        median, middle = statistics.median(values), y + BAR / 2
        parts.append(text(left - 10, middle + 4.5, label, anchor="end"))
        kind = "ours" if name == "lory" else "other"
        parts.append(f'<rect x="{left}" y="{y}" width="{median * scale:.1f}" height="{BAR}" class="{kind}"/>')
        low, high = left + min(values) * scale, left + max(values) * scale
        parts.append(line(low, middle, high, middle, "range"))
        parts += [line(x, middle - 4, x, middle + 4, "range") for x in (low, high)]
        parts.append(text(max(high, left + median * scale) + 8, middle + 4.5, form.format(median)))
        y += BAR + GAP
    parts.append(line(left, top + PANEL_HEAD - 12, left, y - GAP + 4, "axis"))
    return parts, y


def chart(run):
    machine, rounds = run["machine"], run["rounds"]
    cpu = machine["cpu"].replace("(R)", "").replace(" Processor", "")
    parts = [
        text(MARGIN, 30, "Eight clients, each with its own LoRA adapter", "title"),
        text(MARGIN, 50, f"SmolLM2-135M-Instruct, 128 tokens in, 64 out, on {machine['threads']} cores of an {cpu} server", "note"),
    ]
    y = HEAD
    for one in PANELS:
        more, y = panel(rounds, y, *one)
        parts += more
        y += 8
    notes = [
        f"Medians of {len(rounds)} alternating rounds on {machine['date']}; thin lines are the range of the rounds.",
        "Lory: Q4_1 base. llama.cpp: llama-server, Q4_0, its fastest format here. PEFT: bf16, one batch with adapter_names.",
    ]
    for words in notes:
        y += 17
        parts.append(text(MARGIN, y, words, "note"))
    height = y + 18
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img">'
    page = f'<rect width="{WIDTH}" height="{height}" rx="8" class="page"/>'
    about = "<title>Throughput and time to first token of Lory, llama.cpp and PEFT with eight adapters</title>"
    return "\n".join([head, about, f"<style>{STYLE}</style>", page, *parts, "</svg>"]) + "\n"


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("run", type=Path, help="a JSON file that bench/compare.py wrote")
    p.add_argument("out", type=Path, help="the SVG file")
    p.add_argument("--check", action="store_true", help="compare with the file instead of writing it")
    args = p.parse_args()
    drawn = chart(json.loads(args.run.read_text()))
    if not args.check:
        args.out.write_text(drawn)
    elif not args.out.is_file() or args.out.read_text() != drawn:
        sys.exit(f"{args.out} differs from what {args.run} gives; run this script without --check")


if __name__ == "__main__":
    main()
