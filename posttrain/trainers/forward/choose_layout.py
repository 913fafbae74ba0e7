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
class RowLayout:
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


_TRIMMED = "rows cut to the longest of their micro-batch"
LEAST_HIDDEN_ON_CUDA = 1024
"""Below it a layer's products take less time than the launch of FlexAttention: of a model of 135M parameters (hidden
576) a step took 1.3 times as long as TRL's on an H200, of one of 1.2B (hidden 2048) less than half (docs/speed.md)."""


def choose_layout(
    asked: str,
    model: Any,
    padded: Scorer,
    *,
    accelerator: Accelerator,
    head: HeadOptions,
    needs: frozenset[str] = frozenset(),
    num_candidates: int = 0,
) -> RowLayout:
    """The layout asked for; "auto" is shared prompts wherever the model can take them, else trimmed rows. Packed rows
    never hold more tokens than padded ones, whatever the group size, the prompts' length or the padding; on CUDA
    "auto" also asks whether the kernel for them is the faster one.

    model   unwrapped, with its adapter if it has one
    padded  scores rows as TRL does
    Raises ValueError where "shared" is asked of a model that cannot take it.
    """
    if asked == "padded":
        return RowLayout("padded", "as train.layout asks; every row at the longest one's length", padded)
    cannot = why_not_packed(model) or _dropout_fault(model, accelerator)
    if asked == "shared" and cannot is not None:
        raise ValueError(f"layout 'shared' cannot be used with {type(model).__name__}: {cannot}; use 'auto'")
    if asked == "trimmed":
        return RowLayout("trimmed", f"as train.layout asks; {_TRIMMED}", TrimmedScorer(padded))
    reason = cannot or (_slower_fault(model, accelerator) if asked == "auto" else None)
    if reason is not None:
        return RowLayout("trimmed", f"not shared: {reason}; {_TRIMMED}", TrimmedScorer(padded))
    scorer = SharedScorer(accelerator, head, padded, needs, num_candidates)
    return RowLayout("shared", "each prompt once for its group, no padding", scorer)


def _slower_fault(model: Any, accelerator: Accelerator) -> str | None:
    """Why packed groups would be slower than padded rows, where they are right all the same; None where faster."""
    if accelerator.device.type != "cuda":
        return None
    config = model.config.get_text_config()
    if accelerator.mixed_precision == "no" and model.dtype.itemsize > 2:
        return "products are in float32, in which FlexAttention is slow"
    if config.hidden_size < LEAST_HIDDEN_ON_CUDA:
        return f"a hidden size of {config.hidden_size} is below {LEAST_HIDDEN_ON_CUDA}, launches would outweigh it"
    return None


def _dropout_fault(model: Any, accelerator: Accelerator) -> str | None:
    dropout = vars(model.config.get_text_config()).get("attention_dropout")
    return "its attention has dropout" if dropout and accelerator.device.type == "cuda" else None
