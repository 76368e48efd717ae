"""Tool calls and answers under schemas that people wrote for their own services: valid wherever they finish.

The tools are those of the Berkeley Function Calling Leaderboard (Apache-2.0). Run by engine/tests/clients.rs with the
engine's base URL and the collection's folder as its arguments; `ATLAS_TOOLS` takes another number of questions.
"""

import json
import os
import random
import re
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jsonschema
import openai

client = openai.OpenAI(base_url=sys.argv[1], api_key="none", max_retries=0)
# Letters that a question and its tools may have, so that prompt and answer fit into 2,048 tokens.
LETTERS = 4000
# The collection names types as Python does.
TYPES = {"dict": "object", "float": "number", "tuple": "array"}


def schema_of(parameters):
    """A tool's parameters as JSON Schema."""
    schema = {key: value for key, value in parameters.items() if key in ("description", "enum", "format", "required")}
    kind = parameters.get("type", "any")
    if kind != "any":
        schema["type"] = TYPES.get(kind, kind)
    if "properties" in parameters:
        schema["properties"] = {name: schema_of(value) for name, value in parameters["properties"].items()}
    if "items" in parameters:
        schema["items"] = schema_of(parameters["items"])
    return schema


def questions():
    for path in sorted(Path(sys.argv[2]).glob("*.json")):
        for line in path.read_text().splitlines():
            task = json.loads(line)
            tools = [
                {
                    "type": "function",
                    "function": {
                        "name": re.sub("[^a-zA-Z0-9_-]", "_", tool["name"])[:64],
                        "description": tool["description"],
                        "parameters": schema_of(tool["parameters"]),
                    },
                }
                for tool in task["function"]
            ]
            if len(json.dumps([tools, task["question"]])) <= LETTERS:
                yield task["id"], task["question"][0], tools


def wrong(text, schema):
    """Why a finished text does not hold to a schema, if so."""
    try:
        jsonschema.Draft202012Validator(schema).validate(json.loads(text))
    except (ValueError, jsonschema.ValidationError) as error:
        return f"{text!r} under {json.dumps(schema)}: {str(error).splitlines()[0]}"


def streamed_calls(request):
    """Names and arguments of the calls of a streamed answer, joined from its deltas, and why it ended."""
    calls, reason = [], None
    for chunk in client.chat.completions.create(stream=True, **request):
        choice = chunk.choices[0]
        reason = choice.finish_reason or reason
        for delta in choice.delta.tool_calls or []:
            if delta.index == len(calls):
                calls.append([delta.function.name, ""])
            calls[delta.index][1] += delta.function.arguments or ""
    return [tuple(call) for call in calls], reason


def outcomes(index, name, messages, tools):
    """What became of a question's call, whole and streamed, and of an answer in the form of its first tool: `cut` by
    the limit, or `valid`.
    """
    common = {"model": "code", "messages": messages, "temperature": 1, "seed": index, "max_tokens": 120}
    parallel = index % 4 != 0
    request = common | {"tools": tools, "tool_choice": "required", "parallel_tool_calls": parallel}
    answer = client.chat.completions.create(**request).choices[0]
    calls = [(call.function.name, call.function.arguments) for call in answer.message.tool_calls or []]
    if answer.finish_reason == "length":
        yield "call cut"
    else:
        schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools}
        why = None if calls else f"no call: {answer.message.content!r}"
        if len(calls) > 1 and not parallel:
            why = f"{len(calls)} calls where one is allowed"
        for called, arguments in calls:
            if called not in schemas:
                why = f"called {called}, which it does not have"
            else:
                why = why or wrong(arguments, schemas[called])
        yield f"{name}: {why}" if why else "call valid"
        if len(calls) > 1:
            yield "several calls valid"
    # The same seed gives the same text, so the deltas have to join to the same calls.
    streamed = streamed_calls(request)
    same = streamed == (calls, answer.finish_reason)
    yield "stream valid" if same else f"{name}: streamed {streamed}, whole {(calls, answer.finish_reason)}"
    schema = tools[0]["function"]["parameters"]
    form = {"type": "json_schema", "json_schema": {"name": "form", "schema": schema}}
    answer = client.chat.completions.create(response_format=form, **common).choices[0]
    if answer.finish_reason == "length":
        yield "answer cut"
    else:
        why = wrong(answer.message.content, schema)
        yield f"{name}: {why}" if why else "answer valid"


def every_outcome(item):
    index, question = item
    try:
        return list(outcomes(index, *question))
    except openai.APIError as error:
        return [f"{question[0]}: {error}"]


wanted = random.Random(7).sample(list(questions()), int(os.environ.get("ATLAS_TOOLS", "12")))
with ThreadPoolExecutor(8) as pool:
    found = [outcome for part in pool.map(every_outcome, enumerate(wanted)) for outcome in part]
counts = Counter(outcome for outcome in found if outcome.endswith((" valid", " cut")))
failures = [outcome for outcome in found if outcome not in counts]
assert not failures, "\n".join(failures[:20]) + f"\n{len(failures)} failed"
assert counts["stream valid"] == len(wanted) and counts["call valid"] >= len(wanted) / 4 and counts["answer valid"] >= len(wanted) / 4, f"only {counts}"
print("ok", dict(counts), "of", len(wanted))
