"""Settings of a method: a frozen pydantic dataclass, checked as strictly in Python as in a recipe.

    from pydantic.dataclasses import dataclass

    @dataclass(frozen=True)
    class Mine(Settings):
        clip_low: Annotated[float, Ge(0), Lt(1)] = 0.2
        \"\"\"epsilon below 1\"\"\"

The text below a field is its meaning: `posttrain methods NAME` and `posttrain init` show it. Subclasses inherit the
strict configuration. A whole number passes for a float; text and booleans pass for no number, infinity and NaN for
nothing, and an unknown name is an error.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, TypeVar, get_type_hints

from pydantic import ConfigDict, Strict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

STRICT = ConfigDict(
    extra="forbid",
    strict=True,
    allow_inf_nan=False,
    use_attribute_docstrings=True,
    protected_namespaces=(),
)

Pair = Annotated[tuple[float, float], Strict(False)]
"""Two numbers. A list passes for a tuple here and in `Triple`: YAML and JSON know lists only."""
Triple = Annotated[tuple[float, float, float], Strict(False)]

REQUIRED: Any = ...
"""Default of a setting that has none; pydantic writes it the same way."""

SettingsT = TypeVar("SettingsT")


@dataclass(frozen=True, config=STRICT)
class Settings:
    """Base of every method's settings."""

    def values(self) -> dict[str, Any]:
        """The fields as they stand, those filled in at construction included."""
        return {field.name: vars(self)[field.name] for field in dataclasses.fields(self)}


@dataclasses.dataclass(frozen=True)
class Setting:
    """One field of a settings class: its type with its bounds, its default or REQUIRED, what it means."""

    name: str
    annotation: Any
    default: Any
    meaning: str


def list_settings(cls: type) -> list[Setting]:
    """The fields of a settings class, inherited ones first, an overridden one in its first place."""
    hints = get_type_hints(cls, include_extras=True)
    defaults = {field.name: _default(field) for field in dataclasses.fields(cls)}
    found: dict[str, Setting] = {}
    for name, meaning in _meanings(cls):
        found[name] = Setting(name, hints[name], defaults[name], meaning)
    return list(found.values())


def _meanings(cls: type) -> Iterator[tuple[str, str]]:
    # pydantic reads the texts below a class's own fields only, so inherited ones are asked of the class they stand in
    for base in reversed(cls.__mro__):
        fields: Mapping[str, Any] = vars(base).get("__pydantic_fields__", {})
        for name in vars(base).get("__annotations__", {}):
            if name in fields:
                yield name, fields[name].description or ""


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return REQUIRED if field.default is dataclasses.MISSING else field.default


def checked(cls: type[SettingsT], values: Mapping[str, Any], where: str = "") -> SettingsT:
    """`cls` with these values. ValueError "{where}name: why" at the first that is of a wrong type or out of range, else
    the class's own refusal of how they go together."""
    try:
        return TypeAdapter(cls).validate_json(
            json.dumps(dict(values)), strict=True
        )  # JSON: a list passes for a tuple
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if first["type"] == "value_error":
            raise ValueError(first["msg"].removeprefix("Value error, ")) from None
        name = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{where}{name}: {first['msg']}") from None
