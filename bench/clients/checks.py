"""Runs a client's checks and prints their results as one line of JSON: null for a pass, else what went wrong."""

import json
import sys
import traceback
from typing import Literal

from pydantic import BaseModel, Field

BASE_URL, MODEL = sys.argv[1] + "/v1", sys.argv[2]
QUESTION = "Where is my order 12345? It should have come on Monday."
# What the tool answers.
STATUS = "Order 12345 is on its way and arrives on Friday."


class Ticket(BaseModel):
    """A ticket of a support desk."""

    topic: Literal["delivery", "payment", "other"]
    urgent: bool
    order: int = Field(ge=0, le=99999)


class OrderStatus(BaseModel):
    """Looks up where an order is."""

    order: int = Field(ge=0, le=99999, description="the number of the order")


def run(version, **checks):
    results = {}
    for name, check in checks.items():
        try:
            check()
            results[name] = None
        except Exception as error:
            traceback.print_exc()
            results[name] = f"{type(error).__name__}: {error}"[:300]
    print(json.dumps({"version": version, "results": results}))
