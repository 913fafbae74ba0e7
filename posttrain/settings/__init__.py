"""What a method's settings are, and the questions a method answers: `base.py`. No torch."""

from __future__ import annotations

from posttrain.settings.base import STRICT, Inner, Pair, Settings, Triple
from posttrain.settings.run import RunView

__all__ = ["STRICT", "Inner", "Pair", "RunView", "Settings", "Triple"]
