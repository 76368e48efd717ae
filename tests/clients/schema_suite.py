"""Answers under the schemas of the JSON Schema Test Suite: refused with a reason, or valid where they finish.

Run by engine/tests/clients.rs with the engine's base URL and the suite's folder as its arguments. The suite is not ours,
and neither is the validator.
"""

import json
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jsonschema
import openai

client = openai.OpenAI(base_url=sys.argv[1], api_key="none", max_retries=0)


def schemas():
    for path in sorted(Path(sys.argv[2]).glob("*.json")):
        for group in json.loads(path.read_text()):
            yield f"{path.stem}: {group['description']}", group["schema"]


def outcome(index, name, schema):
    """What became of one schema: `refused`, `cut` by the token limit, or `valid`."""
    try:
        answer = client.chat.completions.create(
            model="code",
            messages=[{"role": "user", "content": "Give a short example."}],
            response_format={"type": "json_schema", "json_schema": {"name": "example", "strict": True, "schema": schema}},
            temperature=1,
            seed=index,
            max_tokens=60,
        ).choices[0]
    except openai.BadRequestError as error:
        assert error.param and error.param.startswith("response_format"), f"{name}: {error}"
        return "refused"
    if answer.finish_reason != "stop":
        return "cut"
    try:
        jsonschema.Draft202012Validator(schema).validate(json.loads(answer.message.content))
    except (ValueError, jsonschema.ValidationError) as error:
        return f"{name}: {answer.message.content!r} under {json.dumps(schema)}: {str(error).splitlines()[0]}"
    return "valid"


wanted = list(enumerate(schemas()))
with ThreadPoolExecutor(8) as pool:
    outcomes = list(pool.map(lambda item: outcome(item[0], *item[1]), wanted))
counts = Counter(outcome for outcome in outcomes if outcome in ("refused", "cut", "valid"))
wrong = [outcome for outcome in outcomes if outcome not in counts]
assert not wrong, "\n".join(wrong)
# Most of the suite is about keywords that a grammar cannot hold to; those are refused by name.
assert counts["valid"] >= 40, f"only {counts} of {len(wanted)}"
print("ok", dict(counts), "of", len(wanted))
