"""What a method's class variables say, by the path under which the list of methods names its settings."""

from __future__ import annotations

from functools import lru_cache
from inspect import getattr_static
from typing import Any

from posttrain.recipe.methods import load


@lru_cache(maxsize=256)
def read_flags(path: str) -> dict[str, Any]:
    """Class variables ("needs_answers": True); those that hang on a setting are left out."""
    cls = load(path)
    names = {
        name
        for base in cls.__mro__
        for name, kind in vars(base).get("__annotations__", {}).items()
        if "ClassVar" in str(kind)
    }
    found = {name: getattr_static(cls, name) for name in names}
    return {name: value for name, value in found.items() if not isinstance(value, property)}
