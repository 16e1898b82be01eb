"""LiteLLM, as a client of a server with OpenAI's API."""

from importlib.metadata import version

import litellm
from checks import BASE_URL, MODEL, QUESTION, STATUS, OrderStatus, Ticket, run

TOOLS = [{"type": "function", "function": {
    "name": "order_status", "description": OrderStatus.__doc__, "parameters": OrderStatus.model_json_schema()}}]


def complete(messages, **more):
    return litellm.completion(model=f"openai/{MODEL}", api_base=BASE_URL, api_key="none", messages=messages, **more)


def tools():
    messages = [{"role": "user", "content": QUESTION}]
    first = complete(messages, tools=TOOLS, tool_choice="required").choices[0].message
    OrderStatus.model_validate_json(first.tool_calls[0].function.arguments)
    messages.append(first)
    messages += [{"role": "tool", "tool_call_id": call.id, "name": call.function.name, "content": STATUS} for call in first.tool_calls]
    last = complete(messages, tools=TOOLS).choices[0].message
    assert last.content or last.tool_calls


def structured():
    answer = complete([{"role": "user", "content": QUESTION}], response_format=Ticket)
    Ticket.model_validate_json(answer.choices[0].message.content)


def streaming():
    messages = [{"role": "user", "content": "Hello!"}]
    pieces = list(complete(messages, stream=True, stream_options={"include_usage": True}))
    whole = litellm.stream_chunk_builder(pieces, messages=messages)
    assert len(pieces) > 2 and whole.choices[0].message.content
    assert whole.usage.completion_tokens > 0
    messages = [{"role": "user", "content": QUESTION}]
    pieces = list(complete(messages, tools=TOOLS, tool_choice="required", stream=True))
    whole = litellm.stream_chunk_builder(pieces, messages=messages)
    OrderStatus.model_validate_json(whole.choices[0].message.tool_calls[0].function.arguments)


run(f"litellm {version('litellm')}", tools=tools, structured=structured, streaming=streaming)
