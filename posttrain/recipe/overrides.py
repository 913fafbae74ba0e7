"""`--set section.key=value`: one value of a recipe, written over."""

from __future__ import annotations

import re
from typing import Any

from posttrain.recipe.errors import RecipeError
from posttrain.recipe.strict_yaml import YAMLFault, parse

_DOTTED = re.compile(r"[^.\[\]=\s]+(?:\.[^.\[\]=\s]+|\[[0-9]+\])*")


def apply_override(raw: dict[str, Any], override: str) -> None:
    """Put `a.b=value` (YAML) or `rewards.0.weight=2` into the raw recipe, making mappings on the way."""
    dotted, equals, text = override.partition("=")
    if not equals or not _DOTTED.fullmatch(dotted):
        raise RecipeError(f"--set {override}: write it as section.key=value")
    keys = re.findall(r"[^.\[\]]+", dotted)
    try:
        value = parse(text)
    except YAMLFault as error:
        raise RecipeError(f"--set {override}: the value cannot be read: {error.problem}") from None
    target: Any = raw
    for depth, key in enumerate(keys):
        position = int(key) if isinstance(target, list) and re.fullmatch("[0-9]{1,9}", key) else key
        last = depth == len(keys) - 1
        if isinstance(target, list) and not (isinstance(position, int) and position < len(target)):
            raise RecipeError(f"--set {override}: {'.'.join(keys[:depth])} has no item {key}")
        if not isinstance(target, list | dict):
            raise RecipeError(f"--set {override}: {'.'.join(keys[:depth])} is a value, not a section")
        if last:
            target[position] = value
        else:
            if isinstance(target, dict) and target.get(key) is None:
                target[key] = {}
            target = target[position]
