"""The types of the record and its JSON schema say the same, field by field."""

from __future__ import annotations

import json
import types
import typing
from typing import Any

import pytest

from asrgate.harness import record, record_types

SCHEMA: dict[str, Any] = json.loads(record.SCHEMA_PATH.read_text())
PLAIN = {"string": str, "integer": int, "number": float, "boolean": bool, "null": type(None)}


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    """Return what a reference points to, with what stands beside it."""
    if "$ref" not in schema:
        return schema
    named: dict[str, Any] = SCHEMA["$defs"][schema["$ref"].removeprefix("#/$defs/")]
    return named | {key: value for key, value in schema.items() if key != "$ref"}


def alternatives(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a schema as one schema per type that it allows."""
    schema = resolved(schema)
    if "oneOf" in schema:
        return [each for one in schema["oneOf"] for each in alternatives(one)]
    if isinstance(schema.get("type"), list):
        return [schema | {"type": kind} for kind in schema["type"]]
    if "enum" in schema or "const" in schema:
        (kind,) = {type(value) for value in schema.get("enum", [schema.get("const")])}
        return [{"type": "string" if kind is str else "integer"}]
    return [schema]


def differences(hint: Any, schema: dict[str, Any], path: str) -> list[str]:
    """Say where a type hint and a schema disagree."""
    hints = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    options = alternatives(schema)
    if len(hints) != len(options):
        return [f"{path}: {hint} against {[option['type'] for option in options]}"]
    plain = {PLAIN[option["type"]] for option in options if option["type"] in PLAIN}
    found = [] if plain == {each for each in hints if each in PLAIN.values()} else [f"{path}: {hint}"]
    parts = [each for each in hints if each not in PLAIN.values()]
    for part, option in zip(parts, (o for o in options if o["type"] not in PLAIN), strict=False):
        found += of_part(part, option, path)
    return found


def of_part(hint: Any, schema: dict[str, Any], path: str) -> list[str]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if schema["type"] == "array":
        if origin is not list:
            return [f"{path}: {hint} is no list"]
        items = schema.get("items") or schema["prefixItems"][0]
        return differences(arguments[0], items, f"{path}[]")
    if "properties" in schema and origin is None:
        required = set(schema["required"])
        found = [f"{path}: {hint.__name__} requires other keys"] * (required != hint.__required_keys__)
        hints = typing.get_type_hints(hint)
        found += [f"{path}: {hint.__name__} has other keys"] * (set(hints) != set(schema["properties"]))
        for name in set(hints) & set(schema["properties"]):
            found += differences(hints[name], schema["properties"][name], f"{path}.{name}")
        return found
    if schema.get("required") and typing.is_typeddict(hint):
        return [] if set(schema["required"]) == hint.__required_keys__ else [f"{path}: {hint.__name__}"]
    values = schema.get("additionalProperties")
    if origin is dict and isinstance(values, dict):
        return differences(arguments[1], values, f"{path}{{}}")
    return [] if origin is dict and arguments[1] is Any else [f"{path}: {hint} is no free object"]


def test_types_and_schema_agree() -> None:
    assert differences(record_types.Run, SCHEMA | {"type": "object"}, "run") == []


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        (SCHEMA["properties"]["clips"]["items"], "audio_seconds", {"type": "string"}),
        (SCHEMA["$defs"]["result"], "rtfx", {"type": "number"}),
        (SCHEMA["properties"]["settings"], "new", {"type": "number"}),
        (SCHEMA["$defs"]["result"]["properties"]["gate"], "rank", {"type": "integer"}),
    ],
)
def test_what_differs_is_found(
    part: dict[str, Any], key: str, value: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(part["properties"], key, value)
    assert differences(record_types.Run, SCHEMA, "run") != []
