"""The only rooms that know TRL, accelerate and ranks. `from posttrain.trainers import BAPOTrainer, BAPOConfig`."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from posttrain.methods import METHODS


def __getattr__(name: str) -> Any:
    """The trainer or config of a method, imported when it is asked for: some need optional packages."""
    for method in METHODS.values():
        module, trainer = method.trainer.split(":")
        if name in (trainer, f"{trainer.removesuffix('Trainer')}Config"):
            return vars(import_module(module))[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; methods: {', '.join(METHODS)}")
