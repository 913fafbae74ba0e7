"""Which layout scores the rows of a run, and why that one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator

from posttrain.trainers.forward.base import Scorer
from posttrain.trainers.forward.head import HeadOptions
from posttrain.trainers.forward.shared import SharedScorer, why_not_packed
from posttrain.trainers.forward.trimmed import TrimmedScorer


@dataclass(frozen=True)
class Layout:
    """name    "padded", "trimmed" or "shared"
    reason  why, as a sentence's end: "shared (each prompt once for its group, no padding)" """

    name: str
    reason: str
    scorer: Scorer

    @property
    def shares_prompts(self) -> bool:
        return self.name == "shared"

    @property
    def orders_groups(self) -> bool:
        """Whether micro-batches are made of whole groups: only where rows of a group help each other."""
        return self.name != "padded"


def choose_layout(
    asked: str,
    model: Any,
    padded: Scorer,
    *,
    accelerator: Accelerator,
    head: HeadOptions,
    needs: frozenset[str] = frozenset(),
    num_candidates: int = 0,
) -> Layout:
    """The layout asked for; "auto" is shared prompts wherever the model can take them, else trimmed rows. Packed rows
    never hold more tokens than padded ones, whatever the group size, the prompts' length or the padding.

    model   unwrapped, with its adapter if it has one
    padded  scores rows as TRL does
    Raises ValueError where "shared" is asked of a model that cannot take it.
    """
    if asked == "padded":
        return Layout("padded", "as train.layout asks; every row at the longest one's length", padded)
    fault = why_not_packed(model)
    if asked == "shared" and fault is not None:
        raise ValueError(f"layout 'shared' cannot be used with {type(model).__name__}: {fault}; use 'auto'")
    if asked == "trimmed" or fault is not None:
        cause = "as train.layout asks" if fault is None or asked == "trimmed" else f"not shared: {fault}"
        return Layout(
            "trimmed", f"{cause}; rows cut to the longest of their micro-batch", TrimmedScorer(padded)
        )
    scorer = SharedScorer(accelerator, head, padded, needs, num_candidates)
    return Layout("shared", "each prompt once for its group, no padding", scorer)
