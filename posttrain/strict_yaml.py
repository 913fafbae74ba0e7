"""YAML as recipes mean it: `1e-5` is a number, a repeated key is an error, `on` and `no` are plain words.

PyYAML follows YAML 1.1, in which `1e-5` is text, `no` is false, `12:30` is 750 and the second of two equal
keys wins. Here only true/false, null/~, numbers as Python reads them, and text exist.
"""

from __future__ import annotations

import re
from typing import Any

import yaml


class RecipeLoader(yaml.SafeLoader):
    """SafeLoader with the rules above; errors carry line and column."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise _error(key_node, f"key {key!r} is not text; quote it")
            if key in seen:
                raise _error(key_node, f"key {key!r} stands twice, first on line {seen[key]}; keep one")
            seen[key] = key_node.start_mark.line + 1
        return super().construct_mapping(node, deep)


def _error(node: yaml.Node, message: str) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, message, node.start_mark)


def _resolve(tag: str, pattern: str, first: str) -> None:
    RecipeLoader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(pattern), list(first))


_resolve("bool", r"^(?:true|false|True|False)$", "tTfF")
RecipeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:null", re.compile(r"^(?:null|Null|~|)$"), ["n", "N", "~", ""]
)
_resolve("int", r"^[-+]?[0-9][0-9_]*$", "-+0123456789")
_resolve(
    "float",
    r"^[-+]?(?:(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+|\.(?:inf|Inf))$",
    "-+.0123456789",
)


def _construct_int(loader: RecipeLoader, node: yaml.ScalarNode) -> int:
    # YAML 1.1 would read 010 as eight.
    return int(loader.construct_scalar(node).replace("_", ""), 10)


RecipeLoader.add_constructor("tag:yaml.org,2002:int", _construct_int)


def parse(text: str) -> Any:
    """The document in `text`; ValueError with line and reason where it is not readable."""
    try:
        return yaml.load(text, Loader=RecipeLoader)  # a SafeLoader
    except yaml.YAMLError as error:
        mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
        problem = error.problem if isinstance(error, yaml.MarkedYAMLError) else str(error)
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(f"{where}{problem}") from None
