"""Tools out of JSON schemas: what a model is told of them, and what is handed on."""

from __future__ import annotations

import inspect
from typing import Any, Literal

import pytest

from posttrain.environments.schema_tools import described
from posttrain.environments.tool_specs import ToolFault

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "metadata": {"type": "object"},
        "kind": {"const": "move", "type": "string"},
        "speed": {"type": "integer", "default": 2, "description": "how\n  fast"},
        "to": {"$ref": "#/$defs/Place"},
        "with_": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None, "title": "With"},
    },
    "required": ["to", "kind"],
    "$defs": {"Place": {"enum": ["left", "right"], "type": "string", "description": "where to"}},
}


def walk() -> Any:
    return described(
        "walk", "Walks.\nFar.", SCHEMA, lambda self, arguments: (self, arguments), left_out=("metadata",)
    )


def test_a_schema_becomes_a_signature_and_a_docstring() -> None:
    told = inspect.signature(walk())
    assert list(told.parameters) == ["self", "to", "speed", "with_"]
    assert told.parameters["to"].annotation == Literal["left", "right"]
    assert told.parameters["to"].default is inspect.Parameter.empty
    assert told.parameters["speed"].annotation == int | None
    assert told.parameters["speed"].default == 2
    assert told.parameters["with_"].annotation == str | None
    assert walk().__doc__ == "Walks. Far.\n\nArgs:\n    speed: how fast\n    to: where to\n    with_: With"


def test_what_has_one_value_is_filled_in_and_the_rest_handed_on() -> None:
    assert walk()("me", to="left") == ("me", {"kind": "move", "to": "left"})


def test_transformers_reads_the_same_schema_out_of_it() -> None:
    from transformers.utils import get_json_schema

    found = get_json_schema(walk())["function"]
    assert found["name"] == "walk"
    assert found["description"] == "Walks. Far."
    assert found["parameters"]["required"] == ["to"]
    properties = found["parameters"]["properties"]
    assert properties["to"] == {"type": "string", "enum": ["left", "right"], "description": "where to"}
    assert properties["speed"]["type"] == "integer"
    assert set(properties) == {"to", "speed", "with_"}


@pytest.mark.parametrize(("name", "parameter"), [("walk-on", "to"), ("walk", "to-where"), ("walk", "class")])
def test_a_name_that_python_does_not_have_is_refused(name: str, parameter: str) -> None:
    schema = {"properties": {parameter: {"type": "string"}}}
    with pytest.raises(ToolFault, match="is no name in Python"):
        described(name, "", schema, lambda self, arguments: None)
