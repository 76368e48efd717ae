"""Answers under JSON schemas of many kinds: every one that finished is valid, by a validator that we did not write.

Run by engine/tests/clients.rs with the engine's base URL as its argument; an assertion that fails is a failed test.
"""

import json
import sys
from concurrent.futures import ThreadPoolExecutor

import jsonschema
import openai

client = openai.OpenAI(base_url=sys.argv[1], api_key="none", max_retries=0)


def object_of(**properties):
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


SHORT = {"type": "string", "maxLength": 10}
SCHEMAS = {
    "enum": object_of(color={"enum": ["red", "green", None, 3]}),
    "const": object_of(kind={"const": {"a": [1, "b"]}}),
    "bounds": object_of(low={"type": "integer", "minimum": -5, "maximum": 5}, high={"type": "integer", "exclusiveMinimum": 99, "maximum": 120}),
    "multiple": object_of(n={"type": "integer", "multipleOf": 5, "minimum": 0, "maximum": 100}),
    "number": object_of(n={"type": "number", "minimum": 0, "maximum": 1}),
    "lengths": object_of(code={"type": "string", "minLength": 2, "maxLength": 4}),
    "pattern": object_of(plate={"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"}),
    "date": object_of(day={"type": "string", "format": "date"}, at={"type": "string", "format": "date-time"}),
    "uuid": object_of(id={"type": "string", "format": "uuid"}),
    "items": object_of(tags={"type": "array", "items": SHORT, "minItems": 1, "maxItems": 3}),
    "tuple": object_of(pair={"type": "array", "prefixItems": [{"type": "boolean"}, {"type": "null"}], "items": False, "minItems": 2}),
    "nested": object_of(a=object_of(b=object_of(c={"type": "boolean"}))),
    "optional": {"type": "object", "properties": {"a": {"type": "boolean"}, "b": {"type": "null"}}, "additionalProperties": False},
    "any of": object_of(value={"anyOf": [{"type": "boolean"}, {"type": "array", "items": {"type": "null"}, "maxItems": 2}]}),
    "references": {**object_of(a={"$ref": "#/$defs/short"}, b={"$ref": "#/$defs/short"}), "$defs": {"short": SHORT}},
    "recursive": {"$ref": "#/$defs/tree", "$defs": {"tree": object_of(leaf={"type": "boolean"}, children={"type": "array", "maxItems": 1, "items": {"$ref": "#/$defs/tree"}})}},
    "all of": {"allOf": [object_of(a={"type": "integer", "minimum": 1}), {"properties": {"a": {"maximum": 9}}}]},
    "map": {"type": "object", "additionalProperties": {"type": "boolean"}, "maxProperties": 2},
    "types": object_of(value={"type": ["boolean", "null"]}),
    "escapes": object_of(**{'a "quoted" name\n': {"const": 'back\\slash "and" ☃'}}),
    "array": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4},
    "scalar": {"enum": ["yes", "no"]},
}



def is_finished(name):
    """Asks once; whether the answer finished, and then it must be valid."""
    schema = SCHEMAS[name]
    answer = client.chat.completions.create(
        model="code",
        messages=[{"role": "user", "content": "Give an example."}],
        response_format={"type": "json_schema", "json_schema": {"name": "example", "strict": True, "schema": schema}},
        temperature=1,
        seed=1,
        max_tokens=150,
    ).choices[0]
    if answer.finish_reason != "stop":
        return False
    try:
        jsonschema.validate(json.loads(answer.message.content), schema, format_checker=jsonschema.FormatChecker())
    except (ValueError, jsonschema.ValidationError) as error:
        raise AssertionError(f"{name}: {answer.message.content}") from error
    return True


with ThreadPoolExecutor(4) as pool:
    finished = sum(pool.map(is_finished, SCHEMAS))
assert finished >= len(SCHEMAS) * 0.8, f"only {finished} answers finished"
print("ok", finished, "of", len(SCHEMAS))
