"""What bench/fuzz_api.py tells schemathesis. Three of four bodies get names that are there, and lose most of their other fields, so that
requests get behind the checks of one field; the fourth stays as it was drawn. And archives, which schemathesis cannot write."""

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
    # Whole; cut off; with something in its middle; or no archive at all.
    half = len(ARCHIVE) // 2
    return (ARCHIVE, ARCHIVE[: half + len(drawn) % half], ARCHIVE[:half] + drawn + ARCHIVE[half:], drawn)[len(drawn) % 4]


@schemathesis.hook
def map_body(context, body):
    if not isinstance(body, dict) or zlib.crc32(repr(body).encode()) % 4 == 0:
        return body
    drawn = repr(body)
    kept = {name: value for name, value in body.items() if zlib.crc32(f"{name} {drawn}".encode()) % 4 == 0}
    return {**kept, **{name: value for name, value in NAMED.items() if name in body}}
