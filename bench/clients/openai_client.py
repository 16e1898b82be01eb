"""OpenAI's client for Python."""

import openai
from checks import BASE_URL, MODEL, QUESTION, STATUS, OrderStatus, Ticket, run

client = openai.OpenAI(base_url=BASE_URL, api_key="none")
TOOLS = [openai.pydantic_function_tool(OrderStatus, name="order_status")]


def tools():
    messages = [{"role": "user", "content": QUESTION}]
    first = client.chat.completions.parse(model=MODEL, messages=messages, tools=TOOLS, tool_choice="required")
    [call, *_] = first.choices[0].message.tool_calls
    assert first.choices[0].finish_reason == "tool_calls"
    assert isinstance(call.function.parsed_arguments, OrderStatus)
    messages.append(first.choices[0].message)
    messages += [{"role": "tool", "tool_call_id": one.id, "content": STATUS} for one in first.choices[0].message.tool_calls]
    last = client.chat.completions.create(model=MODEL, messages=messages, tools=TOOLS)
    assert last.choices[0].message.content or last.choices[0].message.tool_calls


def structured():
    answer = client.chat.completions.parse(model=MODEL, messages=[{"role": "user", "content": QUESTION}], response_format=Ticket)
    assert isinstance(answer.choices[0].message.parsed, Ticket), answer


def streaming():
    with client.chat.completions.stream(
        model=MODEL, messages=[{"role": "user", "content": QUESTION}], tools=TOOLS, tool_choice="required"
    ) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert "tool_calls.function.arguments.delta" in kinds, kinds
    assert isinstance(final.choices[0].message.tool_calls[0].function.parsed_arguments, OrderStatus)
    pieces = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "Hello!"}], stream=True)
    assert sum(bool(piece.choices and piece.choices[0].delta.content) for piece in pieces) > 1


run(f"openai {openai.__version__}", tools=tools, structured=structured, streaming=streaming)
