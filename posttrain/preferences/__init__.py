"""Methods that learn from pairs, one file each; `base.py` says what a pair loss is."""

from __future__ import annotations

from posttrain.preferences.base import PairBatch, PairLoss

__all__ = ["PairBatch", "PairLoss"]
