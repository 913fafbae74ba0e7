"""The only rooms that know TRL, accelerate and ranks. `from posttrain.trainers import BAPOTrainer, BAPOConfig`."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from posttrain.recipe.errors import suggest
from posttrain.recipe.methods import METHODS

_HOMES = {
    name: module
    for module, trainer in (method.trainer.split(":") for method in METHODS.values())
    for name in (trainer, f"{trainer.removesuffix('Trainer')}Config")
}
_HOMES["RunReport"] = "posttrain.trainers.reporting.run_report"
"""Every trainer and config, and the module it is imported from when it is asked for: some need optional packages."""

__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]  # the one list of methods is METHODS


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        hint = suggest(name, _HOMES) or f"; methods: {', '.join(METHODS)}"
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
