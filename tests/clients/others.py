"""Clients other than OpenAI's own against an engine: Anthropic's, instructor, langchain-openai, pydantic-ai, litellm.

Run by engine/tests/clients.rs with the engine's base URL as its argument; an assertion that fails is a failed test.
"""

import os
import sys

# litellm would fetch its price list and tell home about itself.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import anthropic
import instructor
import litellm
import openai
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

litellm.telemetry = False
URL = sys.argv[1]
MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]


class Pet(BaseModel):
    """A pet."""

    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=30)


def anthropic_messages():
    def tokens(usage):
        return usage.input_tokens + usage.cache_read_input_tokens, usage.output_tokens

    client = anthropic.Anthropic(base_url=URL.removesuffix("/v1"), api_key="none", max_retries=0)
    wanted = dict(model="code", messages=MESSAGES, max_tokens=8, extra_body={"temperature": 0})
    whole = client.messages.create(**wanted)
    assert whole.content[0].text and whole.stop_reason in ("max_tokens", "end_turn")
    with client.messages.stream(**wanted) as stream:
        assert "".join(stream.text_stream) == whole.content[0].text
        assert tokens(stream.get_final_message().usage) == tokens(whole.usage)
    counted = client.messages.count_tokens(model="code", messages=MESSAGES)
    assert counted.input_tokens == tokens(whole.usage)[0]
    tool = {"name": "pet", "description": "Keeps a pet.", "input_schema": Pet.model_json_schema()}
    wanted |= dict(max_tokens=100, tools=[tool], tool_choice={"type": "tool", "name": "pet"})
    used = client.messages.create(**wanted).content[0]
    Pet.model_validate(used.input)
    with client.messages.stream(**wanted) as stream:
        assert stream.get_final_message().content[0].input == used.input
    try:
        client.messages.create(model="none", messages=MESSAGES, max_tokens=8)
    except anthropic.NotFoundError as error:
        assert error.body["error"]["type"] == "not_found_error"
    else:
        raise AssertionError("an unknown model was taken")


def instructor_models():
    for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
        client = instructor.from_openai(openai.OpenAI(base_url=URL, api_key="none", max_retries=0), mode=mode)
        pet = client.chat.completions.create(
            model="code", messages=MESSAGES, response_model=Pet, temperature=0, max_tokens=100, max_retries=0
        )
        assert isinstance(pet, Pet)


def langchain_chat():
    chat = ChatOpenAI(base_url=URL, api_key="none", model="code", temperature=0, max_tokens=100, max_retries=0)
    whole = chat.bind(max_tokens=8).invoke("What is the capital of France?")
    assert whole.content and whole.usage_metadata["output_tokens"] <= 8
    assert "".join(piece.content for piece in chat.bind(max_tokens=8).stream("What is the capital of France?")) == whole.content
    for method in ("json_schema", "function_calling"):
        assert isinstance(chat.with_structured_output(Pet, method=method).invoke("A cat."), Pet)


def pydantic_agents():
    model = OpenAIChatModel("code", provider=OpenAIProvider(base_url=URL, api_key="none"))
    agent = Agent(model, output_type=Pet, model_settings={"temperature": 0, "max_tokens": 100})
    assert isinstance(agent.run_sync("A cat.").output, Pet)


def litellm_completions():
    wanted = dict(model="openai/code", api_base=URL, api_key="none", messages=MESSAGES, temperature=0, max_tokens=8)
    whole = litellm.completion(**wanted)
    pieces = [piece.choices[0].delta.content or "" for piece in litellm.completion(**wanted, stream=True)]
    assert "".join(pieces) == whole.choices[0].message.content


for check in (anthropic_messages, instructor_models, langchain_chat, pydantic_agents, litellm_completions):
    check()
    print("ok", check.__name__)
