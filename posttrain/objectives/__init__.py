"""Methods that learn from rewards, one file each; `base.py` says what an objective is."""

from __future__ import annotations

from posttrain.objectives.base import AllSum, Groups, Objective, StepTotals, TokenBatch
from posttrain.recipe.methods import METHODS

__all__ = ["OBJECTIVES", "AllSum", "Groups", "Objective", "StepTotals", "TokenBatch"]


def __getattr__(name: str) -> object:
    # Built on first use: a method file imports this package, so the table cannot be built while it loads.
    if name == "OBJECTIVES":
        learning = [m for m in METHODS.values() if m.family in ("policy", "diffusion", "images")]
        return {m.name: m.load_settings() for m in learning if m.settings.startswith(__name__)}
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
