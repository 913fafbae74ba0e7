"""What a method's settings are, and the questions a method answers: `base.py`. No torch."""

from __future__ import annotations

from posttrain.settings.base import STRICT, BuiltOn, Inner, Pair, Settings, Start, Triple
from posttrain.settings.run import WINDOW, Note, RunCurves, RunView

__all__ = [
    "STRICT",
    "WINDOW",
    "BuiltOn",
    "Inner",
    "Note",
    "Pair",
    "RunCurves",
    "RunView",
    "Settings",
    "Start",
    "Triple",
]
