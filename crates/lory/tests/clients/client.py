"""What OpenAI's Python client makes of a running `lory serve`: argument 1 is its address. Ends with 0 if all of it is right.

The base is a tiny random one, so what is checked is the shape of answers, not what they say.
"""

import asyncio
import json
import sys
import time
from typing import Literal

import openai
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel, Field

BASE_URL = f"http://{sys.argv[1]}/v1"
client = OpenAI(base_url=BASE_URL, api_key="none", max_retries=0)
HELLO = [{"role": "user", "content": "Hello!"}]


def models():
    assert [model.id for model in client.models.list()] == ["tiny", "formal", "warm"]


def chat():
    answer = client.chat.completions.create(model="warm", messages=HELLO, max_completion_tokens=12, seed=1)
    [choice] = answer.choices
    assert choice.message.role == "assistant" and choice.message.content
    assert choice.finish_reason == "length"
    assert choice.message.tool_calls is None and choice.logprobs is None
    assert answer.usage.completion_tokens == 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 12
    assert answer.system_fingerprint.startswith("tiny+")
    return choice.message.content


def chat_stream(whole):
    stream = client.chat.completions.create(
        model="warm", messages=HELLO, max_completion_tokens=12, seed=1, stream=True,
        stream_options={"include_usage": True},
    )
    text, reason, usage = "", None, None
    for chunk in stream:
        for choice in chunk.choices:
            text += choice.delta.content or ""
            reason = choice.finish_reason or reason
        usage = chunk.usage or usage
    assert (text, reason, usage.completion_tokens) == (whole, "length", 12)


def several_answers_with_log_probabilities():
    answer = client.chat.completions.create(
        model="formal", messages=HELLO, max_completion_tokens=8, n=3, seed=5, temperature=1,
        logprobs=True, top_logprobs=2, logit_bias={"68": -5}, presence_penalty=0.5,
        frequency_penalty=0.5, user="someone", metadata={"a": "b"}, extra_body={"top_k": 40, "min_p": 0.01},
    )
    assert len({choice.message.content for choice in answer.choices}) == 3
    for index, choice in enumerate(answer.choices):
        assert choice.index == index
        assert len(choice.logprobs.content) == 8
        for token in choice.logprobs.content:
            assert token.logprob <= 0 and len(token.top_logprobs) == 2
        text = b"".join(bytes(token.bytes) for token in choice.logprobs.content)
        assert text.decode(errors="replace") == choice.message.content


class Thing(BaseModel):
    colour: Literal["red", "blue"]
    size: int = Field(ge=1, le=9)
    tags: list[Literal["old", "new"]] = Field(max_length=2)


def parsed():
    answer = client.chat.completions.parse(
        model="warm", messages=HELLO, response_format=Thing, temperature=1.5, seed=3, max_completion_tokens=200
    )
    [choice] = answer.choices
    assert choice.finish_reason == "stop"
    assert isinstance(choice.message.parsed, Thing), answer


class Weather(BaseModel):
    """What the weather is like."""

    city: Literal["Oslo", "Paris"]
    days: int = Field(ge=1, le=7)


TOOLS = [openai.pydantic_function_tool(Weather, name="weather")]


def tools():
    messages = list(HELLO)
    answer = client.chat.completions.create(
        model="warm", messages=messages, tools=TOOLS, tool_choice="required", parallel_tool_calls=False,
        max_completion_tokens=200,
    )
    [choice] = answer.choices
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    [call] = choice.message.tool_calls
    assert call.type == "function" and call.function.name == "weather"
    arguments = Weather.model_validate_json(call.function.arguments)
    # Back as it came, with what the tool gave.
    messages += [choice.message, {"role": "tool", "tool_call_id": call.id, "content": "Rain."}]
    again = client.chat.completions.create(
        model="warm", messages=messages, tools=TOOLS, tool_choice="none", max_completion_tokens=4
    )
    assert again.choices[0].message.content
    return arguments


def tools_stream(arguments):
    with client.chat.completions.stream(
        model="warm", messages=HELLO, tools=TOOLS, tool_choice={"type": "function", "function": {"name": "weather"}},
        max_completion_tokens=200,
    ) as stream:
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
        final = stream.get_final_completion()
    assert len(done) == 1 and done[0].name == "weather"
    [call] = final.choices[0].message.tool_calls
    assert final.choices[0].finish_reason == "tool_calls"
    assert call.function.parsed_arguments == arguments


def completions():
    one = client.completions.create(model="tiny", prompt="Hello", max_tokens=6, logprobs=2, extra_body={"ignore_eos": True})
    logprobs = one.choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.top_logprobs) == len(logprobs.text_offset) == 6
    many = client.completions.create(
        model="warm", prompt=[[5, 6, 7], [8, 9]], n=2, max_tokens=4, temperature=1, seed=2, echo=True,
        extra_body={"ignore_eos": True},
    )
    assert [choice.index for choice in many.choices] == [0, 1, 2, 3]
    assert many.usage.prompt_tokens == 5 and many.usage.completion_tokens == 16
    stream = client.completions.create(model="tiny", prompt="Hello", max_tokens=6, stream=True, extra_body={"ignore_eos": True})
    assert "".join(chunk.choices[0].text for chunk in stream) == one.choices[0].text


def refused(error, param, call):
    try:
        call()
    except error as refusal:
        assert refusal.param == param, refusal.body
        assert refusal.code and refusal.type, refusal.body
        return
    raise AssertionError(f"{error.__name__} was expected")


def errors():
    create = client.chat.completions.create
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "objekt"}}}
    refused(openai.BadRequestError, "temperature", lambda: create(model="warm", messages=HELLO, temperature=5))
    refused(openai.BadRequestError, "n", lambda: create(model="warm", messages=HELLO, n=9))
    refused(openai.BadRequestError, "messages", lambda: create(model="warm", messages=[]))
    refused(
        openai.BadRequestError, "response_format.json_schema.schema",
        lambda: create(model="warm", messages=HELLO, response_format=schema),
    )
    # A stream is refused before it begins, too.
    refused(openai.BadRequestError, "stop[0]", lambda: create(model="warm", messages=HELLO, stop=[""], stream=True))
    refused(openai.NotFoundError, "model", lambda: create(model="nobody", messages=HELLO))
    refused(openai.BadRequestError, None, lambda: client.embeddings.create(model="tiny", input="Hello"))
    refused(openai.BadRequestError, "prompt", lambda: client.completions.create(model="tiny", prompt=""))


async def at_once():
    async with AsyncOpenAI(base_url=BASE_URL, api_key="none", max_retries=0) as client:
        ask = lambda i: client.chat.completions.create(
            model=["warm", "formal", "tiny"][i % 3], messages=HELLO, max_completion_tokens=10, seed=i, temperature=1
        )
        first = [(await ask(i)).choices[0].message.content for i in range(6)]
        together = await asyncio.gather(*(ask(i) for i in range(6)))
        assert [answer.choices[0].message.content for answer in together] == first


def finished(job):
    while job.status not in ("succeeded", "failed", "cancelled"):
        time.sleep(0.05)
        job = client.fine_tuning.jobs.retrieve(job.id)
    return job


def fine_tuning():
    said = lambda i: [{"role": "user", "content": f"Where is order {i}?"}, {"role": "assistant", "content": f"Yay, order {i}."}]
    rows = "".join(json.dumps({"messages": said(i)}) + "\n" for i in range(100, 124)).encode()
    file = client.files.create(file=("rows.jsonl", rows), purpose="fine-tune")
    assert (file.object, file.purpose, file.bytes, file.status) == ("file", "fine-tune", len(rows), "processed")
    assert client.files.content(file.id).read() == rows
    assert [one.id for one in client.files.list(purpose="fine-tune")] == [file.id]
    method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 4, "rank": 4}}}
    job = client.fine_tuning.jobs.create(
        model="tiny", training_file=file.id, suffix="sunny", seed=3, method=method, metadata={"team": "care"}
    )
    assert job.object == "fine_tuning.job" and job.fine_tuned_model is None and job.user_provided_suffix == "sunny"
    job = finished(job)
    assert (job.status, job.fine_tuned_model) == ("succeeded", "sunny@1"), job
    assert job.trained_tokens > 0 and job.error is None and job.hyperparameters.n_epochs == 2
    # All of them, page by page.
    events = list(client.fine_tuning.jobs.list_events(job.id, limit=4))
    assert len(events) > 8 and len({event.id for event in events}) == len(events)
    assert events[0].message == "The job has successfully completed"
    assert [event.data["step"] for event in events if event.type == "metrics"][0] > 0
    states = list(client.fine_tuning.jobs.checkpoints.list(job.id, limit=1))
    assert [state.fine_tuned_model_checkpoint for state in states].count("sunny@1") == 1
    assert all(state.metrics.full_valid_loss > 0 and state.step_number > 0 for state in states)
    answer = client.chat.completions.create(model=job.fine_tuned_model, messages=HELLO, max_completion_tokens=4)
    assert answer.usage.completion_tokens == 4

    method["supervised"]["hyperparameters"]["n_epochs"] = 10000
    long = client.fine_tuning.jobs.create(model="sunny", training_file=file.id, method=method)
    while client.fine_tuning.jobs.retrieve(long.id).status != "running":
        time.sleep(0.05)
    assert client.fine_tuning.jobs.pause(long.id).status == "paused"
    assert client.fine_tuning.jobs.resume(long.id).status == "queued"
    assert client.fine_tuning.jobs.cancel(long.id).status == "cancelled"
    assert [one.id for one in client.fine_tuning.jobs.list(limit=1)] == [long.id, job.id]
    assert [one.id for one in client.fine_tuning.jobs.list(metadata={"team": "care"})] == [job.id]
    refused(openai.ConflictError, None, lambda: client.fine_tuning.jobs.cancel(long.id))
    refused(openai.BadRequestError, "file", lambda: client.files.create(file=("bad.jsonl", b"{}\n"), purpose="fine-tune"))
    refused(
        openai.BadRequestError, "hyperparameters.n_epochs",
        lambda: client.fine_tuning.jobs.create(model="tiny", training_file=file.id, hyperparameters={"n_epochs": 0}),
    )
    assert client.files.delete(file.id).deleted


models()
chat_stream(chat())
several_answers_with_log_probabilities()
parsed()
tools_stream(tools())
completions()
errors()
fine_tuning()
asyncio.run(at_once())
print(json.dumps({"client": f"openai {openai.__version__}", "ok": True}))
