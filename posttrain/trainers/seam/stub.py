"""What editors and type checkers see of `posttrain.trainers`, whose classes are made from the list of methods.

    python -m posttrain.trainers.seam.stub          # writes posttrain/trainers/__init__.pyi

A new method is in the stub after that; a test holds the file to what this gives.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from posttrain.recipe.methods import METHODS
from posttrain.settings.base import list_settings

STUB = Path(__file__).parent.parent / "__init__.pyi"
HEAD = """\
# Made by `python -m posttrain.trainers.seam.stub`; a test holds it to what that gives.
# ruff: noqa: E501
from dataclasses import dataclass
from typing import Any, Literal

"""


def spell(annotation: Any) -> str:
    """A setting's type as source, its bounds left out: float, list[str], Literal["a"] | None."""
    outer, inner = get_origin(annotation), get_args(annotation)
    if outer is Annotated:
        return spell(inner[0])
    if outer is Literal:
        return f"Literal[{', '.join(map(repr, inner))}]"
    if outer in (UnionType, Union):
        return " | ".join(spell(member) for member in inner)
    if outer in (list, dict, tuple):
        return f"{outer.__name__}[{', '.join(spell(member) for member in inner)}]"
    return {type(None): "None", Any: "Any"}.get(annotation) or annotation.__name__


def stub() -> str:
    """The text of the stub."""
    bodies: list[str] = []
    imports: set[str] = set()
    for method in METHODS.values():
        trainer = method.load_trainer()
        home, name = method.trainer.split(":")
        made = home.endswith(".bindings")
        config_name = f"{name.removesuffix('Trainer')}Config"
        config = vars(inspect.getmodule(trainer))[config_name]
        if "made_of" in vars(config):
            base = next(cls for cls in config.__mro__ if "made_of" not in vars(cls))
            imports.add(_import(base))
            bodies.append("\n".join(_config(config, base)))
        else:  # TRL's own
            imports.add(f"from {config.__module__} import {config_name} as {config_name}")
        if made:
            base = trainer.__mro__[1]
            imports.add(_import(base))
            bodies.append("\n".join(_trainer(trainer, base, config_name)))
        else:
            imports.add(f"from {home} import {name} as {name}")
    imports.add("from posttrain.trainers.reporting.run_report import RunReport as RunReport")
    return HEAD + "\n".join(_merged(imports)) + "\n\n" + "\n\n".join(bodies) + "\n"


def _merged(imports: set[str]) -> list[str]:
    """One line per module."""
    names: dict[str, list[str]] = {}
    for line in sorted(imports):
        home, _, name = line.removeprefix("from ").partition(" import ")
        names.setdefault(home, []).append(name)
    return [f"from {home} import {', '.join(found)}" for home, found in names.items()]


def _import(cls: type) -> str:
    return f"from {cls.__module__} import {cls.__name__}"


def _config(config: type, base: type) -> Iterator[str]:
    made_of = vars(config)["made_of"]
    own = {setting.name: setting for settings in made_of for setting in list_settings(settings)}
    yield "@dataclass"
    yield f"class {config.__name__}({base.__name__}):"
    whose = " and ".join(cls.__name__ for cls in reversed(made_of))
    yield f'    """{base.__name__} and the settings of {whose}."""'
    inherited = {field.name for field in dataclasses.fields(base)}
    for field in dataclasses.fields(config):
        if field.name not in inherited:
            yield f"    {field.name}: {spell(own[field.name].annotation)} = ..."
            yield f'    """{own[field.name].meaning}"""'


def _trainer(trainer: type, base: type, config_name: str) -> Iterator[str]:
    first = inspect.getdoc(trainer) or ""
    yield f"class {trainer.__name__}({base.__name__}):"
    yield f'    """{first.splitlines()[0]}"""'
    yield f"    args: {config_name}"
    parameters = inspect.signature(base.__init__).parameters  # type: ignore[misc]  # of the class, on purpose
    yield "    def __init__("
    starred = False
    for name, one in parameters.items():
        if one.kind is one.KEYWORD_ONLY and not starred:
            starred = True
            yield "        *,"
        if name == "self":
            yield "        self,"
        elif one.kind is one.VAR_KEYWORD:
            yield f"        **{name}: Any,"
        elif one.kind is one.VAR_POSITIONAL:
            starred = True
            yield f"        *{name}: Any,"
        elif name not in ("objective", "method"):  # the class names it
            kind = f"{config_name} | None" if name == "args" else "Any"
            default = "" if one.default is one.empty else " = ..."
            yield f"        {name}: {kind}{default},"
    yield "    ) -> None: ..."


if __name__ == "__main__":
    STUB.write_text(stub(), encoding="utf-8")
