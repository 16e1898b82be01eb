"""LangChain's chat model for OpenAI's API."""

from importlib.metadata import version

from checks import BASE_URL, MODEL, QUESTION, STATUS, Ticket, run
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

model = ChatOpenAI(base_url=BASE_URL, api_key="none", model=MODEL)


@tool
def order_status(order: int) -> str:
    """Looks up where an order is."""
    return STATUS


def tools():
    messages = [HumanMessage(QUESTION)]
    messages.append(model.bind_tools([order_status], tool_choice="required").invoke(messages))
    calls = messages[-1].tool_calls
    assert calls and not messages[-1].invalid_tool_calls, messages[-1]
    messages += [order_status.invoke(call) for call in calls]
    last = model.bind_tools([order_status]).invoke(messages)
    assert last.content or last.tool_calls
    assert last.usage_metadata["total_tokens"] > 0


def structured():
    for method in ("json_schema", "function_calling"):
        ticket = model.with_structured_output(Ticket, method=method).invoke(QUESTION)
        assert isinstance(ticket, Ticket), (method, ticket)
    assert isinstance(model.with_structured_output(Ticket).invoke(QUESTION), Ticket)


def streaming():
    pieces = list(model.stream("Hello!"))
    assert len(pieces) > 2
    whole = sum(pieces[1:], pieces[0])
    assert whole.content
    calls = list(model.bind_tools([order_status], tool_choice="required").stream(QUESTION))
    assert sum(calls[1:], calls[0]).tool_calls


run(f"langchain-openai {version('langchain-openai')}", tools=tools, structured=structured, streaming=streaming)
