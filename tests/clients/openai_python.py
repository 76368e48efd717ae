"""The official OpenAI Python client against an engine: blocking, streamed, tools, schemas, errors.

Run by engine/tests/clients.rs with the engine's base URL as its argument; an assertion that fails is a failed test.
"""

import json
import sys

import openai
from pydantic import BaseModel, Field

client = openai.OpenAI(base_url=sys.argv[1], api_key="none", max_retries=0)
MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]


def blocking_and_streamed_answers_agree():
    whole = client.chat.completions.create(model="code", messages=MESSAGES, temperature=0, max_tokens=8)
    assert whole.choices[0].message.content and whole.usage.completion_tokens <= 8
    stream = client.chat.completions.create(
        model="code", messages=MESSAGES, temperature=0, max_tokens=8, stream=True, stream_options={"include_usage": True}
    )
    text, usage = "", None
    for chunk in stream:
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
        usage = chunk.usage or usage
    assert text == whole.choices[0].message.content and usage.total_tokens == whole.usage.total_tokens
    completion = client.completions.create(model="code", prompt="The capital of France is", temperature=0, max_tokens=2)
    assert completion.choices[0].text == " Paris."


def log_probabilities_and_choices_are_parsed():
    answer = client.chat.completions.create(
        model="code", messages=MESSAGES, max_tokens=3, n=2, seed=1, logprobs=True, top_logprobs=2
    )
    for choice in answer.choices:
        assert len(choice.logprobs.content) == 3 and len(choice.logprobs.content[0].top_logprobs) == 2


TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


def tools_are_called_and_answered():
    wanted = dict(model="code", messages=MESSAGES, tools=[TOOL], tool_choice="required", temperature=0, max_tokens=80)
    message = client.chat.completions.create(**wanted, parallel_tool_calls=False).choices[0].message
    call = message.tool_calls[0]
    assert call.function.name == "weather" and "city" in json.loads(call.function.arguments)
    with client.chat.completions.stream(**wanted, parallel_tool_calls=False) as stream:
        streamed = stream.get_final_completion().choices[0].message.tool_calls[0]
    assert streamed.function.arguments == call.function.arguments
    history = MESSAGES + [
        message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
    ]
    answer = client.chat.completions.create(model="code", messages=history, tools=[TOOL], max_tokens=5)
    assert answer.choices[0].finish_reason in ("length", "stop", "tool_calls")


class Pet(BaseModel):
    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=30)


def schemas_are_held_to():
    answer = client.chat.completions.parse(
        model="code", messages=MESSAGES, response_format=Pet, temperature=0, max_tokens=100
    )
    assert isinstance(answer.choices[0].message.parsed, Pet)


def responses_are_understood():
    whole = client.responses.create(model="code", input="What is 2 + 2?", temperature=0, max_output_tokens=8)
    assert whole.output_text and whole.usage.output_tokens <= 8
    text, last = "", None
    for event in client.responses.create(
        model="code", input="What is 2 + 2?", temperature=0, max_output_tokens=8, stream=True
    ):
        if event.type == "response.output_text.delta":
            text += event.delta
        last = event
    assert text == whole.output_text and last.type in ("response.completed", "response.incomplete")
    assert last.response.output_text == text
    parsed = client.responses.parse(model="code", input="A cat.", text_format=Pet, temperature=0, max_output_tokens=100)
    assert isinstance(parsed.output_parsed, Pet)


def embeddings_are_decoded():
    first, second = client.embeddings.create(model="code", input=["a cat", "a dog"]).data
    assert len(first.embedding) == len(second.embedding) > 100 and first.embedding != second.embedding


def errors_have_their_classes():
    for wanted, kind, param in [
        (dict(model="code", messages=[]), openai.BadRequestError, "messages"),
        (dict(model="none", messages=MESSAGES), openai.NotFoundError, "model"),
        (dict(model="code", messages=MESSAGES, temperature=9), openai.BadRequestError, "temperature"),
    ]:
        try:
            client.chat.completions.create(**wanted)
        except kind as error:
            assert error.param == param, error
        else:
            raise AssertionError(f"{wanted} was taken")
    assert client.models.list().data[0].id == "code"


for name, check in list(globals().items()):
    if callable(check) and getattr(check, "__module__", "") == "__main__" and not isinstance(check, type):
        check()
        print("ok", name)
