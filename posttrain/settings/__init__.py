"""What a method's settings are, and the questions a method answers: `base.py`. No torch."""

from __future__ import annotations

from posttrain.settings.base import STRICT, Pair, Settings, Triple

__all__ = ["STRICT", "Pair", "Settings", "Triple"]
