#!/usr/bin/env python3
"""Generates load for a streaming server: Lory, llama-server, or any server with OpenAI's completions API.

In a closed loop, each client has one connection at a time: it sends a prompt of random words, reads the stream to its end, and sends the
next. In an open loop (--rate), requests start at random times (Poisson), even if earlier ones still run. Only the Python standard
library is needed. Prints a table, and writes JSON with --json.

    bench/load.py --url http://127.0.0.1:8000 --clients 8 --tones one-each --personas customer,partner
    bench/load.py --api llama --url http://127.0.0.1:8080 --clients 8 --tones one-each --personas 0,1,2,3,4,5,6,7

The time to first token is from sending the request to its first text. Tokens are counted by the server.
"""
import argparse
import asyncio
import json
import random
import resource
import sys
import time
from urllib.parse import urlsplit

WORDS = (
    "order invoice parcel window garden river number yellow delivery partner morning question station paper glass market "
    "winter engine table letter contract bridge coffee summer village ticket return address bottle machine silver pocket "
    "answer corner travel button shadow school forest price account island kitchen museum planet doctor signal harbor"
).split()


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--url", default="http://127.0.0.1:8000")
    p.add_argument("--api", choices=["openai", "llama"], default="openai",
                   help="openai: POST /v1/completions; llama: llama-server's own POST /completion with its lora field")
    p.add_argument("--clients", type=int, default=8)
    p.add_argument("--requests", type=int, default=2, help="requests per client (closed loop) or in total (open loop)")
    p.add_argument("--rate", type=float, help="open loop: requests per second, at random times")
    p.add_argument("--prompt", type=int, default=128, help="tokens of a prompt, approximately (exactly with --ids)")
    p.add_argument("--ids", type=int, metavar="VOCABULARY", help="send token ids below this instead of words")
    p.add_argument("--new", type=int, default=64, help="tokens to generate")
    p.add_argument("--tones", default="none", help="none | one-each | uniform | zipf:S, over --personas")
    p.add_argument("--personas", default="", help="names, comma-separated, or NAME%%d:COUNT for numbered ones")
    p.add_argument("--base", default="base", help="name of the base")
    p.add_argument("--shared-prefix", type=int, default=0, help="number of words that all prompts start with")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--timeout", type=float, default=300)
    p.add_argument("--json", metavar="FILE", help="write the figures and the times of every request to this file")
    p.add_argument("--label", default="")
    args = p.parse_args()
    names = args.personas
    if "%d:" in names:
        pattern, count = names.rsplit(":", 1)
        args.names = [pattern.replace("%d", str(i)) for i in range(int(count))]
    else:
        args.names = [n for n in names.split(",") if n]
    if args.tones != "none" and not args.names:
        p.error("--tones %s needs --personas" % args.tones)
    return args


class Picker:
    """Which persona a request names."""

    def __init__(self, args):
        self.args, self.random = args, random.Random(args.seed)
        self.weights = None
        if args.tones.startswith("zipf:"):
            s = float(args.tones[5:])
            self.weights = [1 / (rank + 1) ** s for rank in range(len(args.names))]

    def __call__(self, client):
        if self.args.tones == "none":
            return None
        if self.args.tones == "one-each":
            return self.args.names[client % len(self.args.names)]
        if self.weights:
            return self.random.choices(self.args.names, self.weights)[0]
        return self.random.choice(self.args.names)


def body(args, persona, number):
    rng = random.Random(args.seed * 1_000_003 + number)
    if args.ids:
        shared = random.Random(args.seed)
        prompt = [shared.randrange(100, args.ids) for _ in range(args.shared_prefix)]
        prompt += [rng.randrange(100, args.ids) for _ in range(args.prompt - args.shared_prefix)]
    else:
        words = WORDS[: args.shared_prefix] + [rng.choice(WORDS) for _ in range(args.prompt - args.shared_prefix)]
        prompt = " ".join(words)
    if args.api == "llama":
        # Names all adapters of the server, with scale 0 for all but one: an adapter that a request does not name keeps the server's scale.
        lora = [{"id": int(name), "scale": 1.0 if name == persona else 0.0} for name in args.names]
        return "/completion", {"prompt": prompt, "n_predict": args.new, "temperature": 0, "ignore_eos": True,
                               "cache_prompt": False, "stream": True, "lora": lora}
    return "/v1/completions", {"model": persona or args.base, "prompt": prompt, "max_tokens": args.new, "temperature": 0,
                               "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True}}


async def ask(args, persona, number):
    """Sends one request; returns its times and token counts, or its error."""
    url = urlsplit(args.url)
    path, content = body(args, persona, number)
    data = json.dumps(content).encode()
    result = {"number": number, "persona": persona, "sent": time.perf_counter(), "tokens": 0, "prompt_tokens": 0}
    first = last = None
    gaps = []
    writer = None
    try:
        reader, writer = await asyncio.open_connection(url.hostname, url.port or 80, limit=1 << 20)
        head = (f"POST {path} HTTP/1.1\r\nHost: {url.netloc}\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(data)}\r\nConnection: close\r\n\r\n")
        writer.write(head.encode() + data)
        await writer.drain()
        status = int((await reader.readline()).split()[1])
        while (await reader.readline()).strip():
            pass
        if status != 200:
            raise RuntimeError(f"HTTP {status}: {(await reader.read(2000)).decode(errors='replace')}")
        while line := await reader.readline():
            if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                continue
            now = time.perf_counter()
            event = json.loads(line[6:])
            if "error" in event:
                raise RuntimeError(str(event["error"]))
            choices = event.get("choices") or [{}]
            if event.get("content") or choices[0].get("text"):
                if first is None:
                    first = now
                else:
                    gaps.append(now - last)
                last = now
            if usage := event.get("usage"):
                result["tokens"], result["prompt_tokens"] = usage["completion_tokens"], usage["prompt_tokens"]
            elif event.get("stop") and "tokens_predicted" in event:
                result["tokens"], result["prompt_tokens"] = event["tokens_predicted"], event["tokens_evaluated"]
        if first is None:
            raise RuntimeError("the stream held no text")
        result |= {"ttft": first - result["sent"], "total": time.perf_counter() - result["sent"], "gaps": gaps}
    except Exception as error:  # a failure of the server is counted; it does not stop the measurement
        result["error"] = f"{type(error).__name__}: {error}"
    finally:
        if writer:
            writer.close()
    return result


async def run(args):
    pick, results, number = Picker(args), [], 0

    async def one(client):
        nonlocal number
        number += 1
        try:
            results.append(await asyncio.wait_for(ask(args, pick(client), number), args.timeout))
        except asyncio.TimeoutError:
            results.append({"number": number, "error": f"no end within {args.timeout} s"})

    async def client(index):
        for _ in range(args.requests):
            await one(index)

    started = time.perf_counter()
    if args.rate:
        clock, tasks = random.Random(args.seed + 1), []
        for index in range(args.requests):
            tasks.append(asyncio.create_task(one(index)))
            await asyncio.sleep(clock.expovariate(args.rate))
        await asyncio.gather(*tasks)
    else:
        await asyncio.gather(*(client(i) for i in range(args.clients)))
    return results, time.perf_counter() - started


def percentile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def main():
    args = arguments()
    results, seconds = asyncio.run(run(args))
    good = [r for r in results if "error" not in r]
    bad = [r for r in results if "error" in r]
    new = sum(r["tokens"] for r in good)
    prompt = sum(r["prompt_tokens"] for r in good)
    spread = {}
    for name, values in (("ttft", [r["ttft"] for r in good]), ("total", [r["total"] for r in good]),
                         ("gap", [g for r in good for g in r["gaps"]])):
        spread[name] = {k: 1e3 * percentile(values, s) for k, s in (("p50", .5), ("p95", .95), ("p99", .99), ("max", 1))}
    cpu = resource.getrusage(resource.RUSAGE_SELF)
    figures = {
        "label": args.label, "clients": args.clients, "tones": args.tones, "prompt": args.prompt, "new": args.new,
        "requests": len(good), "failed": len(bad), "seconds": seconds, "new_tokens": new, "prompt_tokens": prompt,
        "new_tokens_per_s": new / seconds, "tokens_per_s": (new + prompt) / seconds, "ms": spread,
        "generator_cpu_s": cpu.ru_utime + cpu.ru_stime,
    }
    print(f"{len(good)} requests, {len(bad)} failed, {seconds:.2f} s: {new} new tokens, {new / seconds:.1f} tok/s "
          f"(with prompts {(new + prompt) / seconds:.1f}); this program took {figures['generator_cpu_s']:.2f} s of CPU")
    print(f"{'ms':24}{'p50':>10}{'p95':>10}{'p99':>10}{'max':>10}")
    for name, words in (("ttft", "time to first token"), ("gap", "between tokens"), ("total", "whole answer")):
        print(f"{words:24}" + "".join(f"{spread[name][k]:10.1f}" for k in ("p50", "p95", "p99", "max")))
    for r in bad[:3]:
        print("failed:", r["error"], file=sys.stderr)
    if args.json:
        with open(args.json, "w") as file:
            json.dump(figures | {"each": results}, file)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
