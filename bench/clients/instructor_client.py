"""instructor: Pydantic models out of tool calls and JSON schemas, with its loop that asks again after an invalid answer."""

from importlib.metadata import version

import instructor
from checks import BASE_URL, MODEL, QUESTION, Ticket, run
from openai import OpenAI

MESSAGES = [{"role": "user", "content": QUESTION}]


def client(**mode):
    return instructor.from_openai(OpenAI(base_url=BASE_URL, api_key="none"), **mode)


def tools():
    ticket = client().chat.completions.create(model=MODEL, messages=MESSAGES, response_model=Ticket)
    assert isinstance(ticket, Ticket)


def structured():
    made = client(mode=instructor.Mode.JSON_SCHEMA)
    assert isinstance(made.chat.completions.create(model=MODEL, messages=MESSAGES, response_model=Ticket), Ticket)


def streaming():
    *_, ticket = client().chat.completions.create_partial(model=MODEL, messages=MESSAGES, response_model=Ticket)
    Ticket.model_validate(ticket.model_dump())


run(f"instructor {version('instructor')}", tools=tools, structured=structured, streaming=streaming)
