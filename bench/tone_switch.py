"""Measures the cost of switching tones between requests: the same requests in blocks of one tone, and alternating between two.

Needs a running server with at least two personas, and only Python's standard library:
    lory serve --port 8000 &
    python bench/tone_switch.py http://127.0.0.1:8000 customer partner

Both kinds of round use each tone equally often, and they alternate, so that drift of the machine affects both equally. Prints
medians of all requests. One request at a time, 32 new tokens at most, greedy.
"""

import json
import statistics
import sys
import time
import urllib.request

ROUNDS, REQUESTS, TOKENS = 5, 12, 32


def ask(server, tone, number):
    body = {"prompt": f"Where is my order #{48000 + number}?", "user_type": tone, "max_new_tokens": TOKENS, "temperature": 0}
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(server + "/generate", json.dumps(body).encode(), headers)
    start = time.perf_counter()
    with urllib.request.urlopen(request) as response:
        tokens = json.load(response)["usage"]["completion_tokens"]
    return (time.perf_counter() - start) / tokens * 1000


server, first, second = sys.argv[1:4]
for tone in (first, second):
    ask(server, tone, 0)
half = REQUESTS // 2
orders = {"in blocks": [first] * half + [second] * half, "alternating": [first, second] * half}
times = {name: [] for name in orders}
for _ in range(ROUNDS):
    for name, tones in orders.items():
        times[name] += [ask(server, tone, number) for number, tone in enumerate(tones)]
for name, values in times.items():
    print(f"{name:12} {statistics.median(values):6.2f} ms a token (median of {len(values)} requests)")
blocks, alternating = (statistics.median(values) for values in times.values())
print(f"alternating / in blocks: {alternating / blocks:.3f}")
