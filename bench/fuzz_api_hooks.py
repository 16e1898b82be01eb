"""Hooks of schemathesis for bench/fuzz_api.py. Three of four bodies get names that exist, and lose most of their other fields, so
that requests get past the first field's checks; the fourth body is sent as generated. Also serializes zip archives, which
schemathesis cannot write."""

import json
import os
import pathlib
import zlib

import schemathesis

NAMED = json.loads(os.environ["FUZZ_API_NAMED"])
ARCHIVE = pathlib.Path(os.environ["FUZZ_API_ARCHIVE"]).read_bytes()


@schemathesis.serializer("application/zip")
def archive(context, value):
    drawn = value if isinstance(value, bytes) else json.dumps(value, default=repr).encode()
    # A valid archive; a truncated one; one with bytes inserted in the middle; not an archive.
    half = len(ARCHIVE) // 2
    return (ARCHIVE, ARCHIVE[: half + len(drawn) % half], ARCHIVE[:half] + drawn + ARCHIVE[half:], drawn)[len(drawn) % 4]


@schemathesis.hook
def map_body(context, body):
    if not isinstance(body, dict) or zlib.crc32(repr(body).encode()) % 4 == 0:
        return body
    drawn = repr(body)
    kept = {name: value for name, value in body.items() if zlib.crc32(f"{name} {drawn}".encode()) % 4 == 0}
    return {**kept, **{name: value for name, value in NAMED.items() if name in body}}
