"""The shared layout: one packed row, each prompt once for its group, only scored positions through the LM head.

The model is called as it always is, through whatever wraps it (DDP, FSDP2, DeepSpeed, PEFT), with one keyword more:
`packed=`. Its forward then runs the backbone on the packed row and the head on the scored positions, and gives
scores instead of logits. A call without the keyword is what it was.
"""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from accelerate import Accelerator
from accelerate.utils import is_peft_model
from torch import Tensor, nn

from posttrain.trainers.forward.base import LOGPROBS_ONLY, Rows, Scored, Scorer, Wanted
from posttrain.trainers.forward.head import HeadOptions, head_fault, head_shape, score_hidden
from posttrain.trainers.forward.shared_attention import shared_inputs, take_shared_rows, why_not_shared
from posttrain.trainers.forward.shared_rows import SharedRows, share_prompts


@dataclass(frozen=True)
class PackedCall:
    """What the model's forward is asked: to score these rows, and for what beside log-probs."""

    rows: SharedRows
    head: HeadOptions
    entropy: bool
    hidden: bool
    trunk: bool
    num_candidates: int


def take_packed_calls(model: Any) -> None:
    """From now on the causal LM's forward answers a `PackedCall`: a mapping of (M,) and (M, ...) tensors of the scored
    tokens, by the names `Objective.needs` explains."""
    take_shared_rows(model)
    inner = model.forward

    # `generate` checks its arguments against the signature
    @functools.wraps(type(model).forward)
    def forward(this: Any, *arguments: Any, packed: PackedCall | None = None, **named: Any) -> Any:
        return inner(*arguments, **named) if packed is None else _scores(this, packed)

    model.forward = types.MethodType(forward, model)


def _scores(model: Any, call: PackedCall) -> dict[str, Tensor]:
    # looked up at each call: FSDP and PEFT replace parts of the model after this is set up
    hidden = model.base_model(**shared_inputs(call.rows)).last_hidden_state[0, call.rows.predicting]
    found = score_hidden(
        model,
        hidden,
        call.rows.targets,
        call.head,
        entropy=call.entropy,
        num_candidates=call.num_candidates,
    )
    scores = {"logprobs": found.logprobs}
    if found.entropy is not None:
        scores["entropy"] = found.entropy
    if call.trunk:
        scores["trunk"] = hidden
    if call.hidden:
        # where both are read the head times it is the logits of the loss
        slope = head_shape(model, call.head).slope if call.num_candidates else 1.0
        scores["hidden"] = hidden.detach() * slope
    if found.candidate_ids is not None and found.candidate_logits is not None:
        scores |= {"candidate_ids": found.candidate_ids, "candidate_logits": found.candidate_logits}
    return scores


class SharedScorer:
    """Scores rows as packed prompt groups; a call it cannot pack (images, a router's loss, another kind of model) is
    the `other` scorer's.

    needs, num_candidates  of the objective
    other                  a layout that takes every call
    """

    def __init__(
        self,
        accelerator: Accelerator,
        head: HeadOptions,
        other: Scorer,
        needs: frozenset[str] = frozenset(),
        num_candidates: int = 0,
    ) -> None:
        self._accelerator = accelerator
        self._head = head
        self._other = other
        self._hidden, self._trunk = "hidden" in needs, "trunk" in needs
        self._num_candidates = num_candidates if "candidates" in needs else 0
        self._ready: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()

    def with_head(self, head: HeadOptions, other: Scorer) -> SharedScorer:
        """The same layout with another temperature, and another scorer for what it cannot pack."""
        made = copy.copy(self)  # the models that are ready stay known: their forward is replaced once
        made._head, made._other = head, other
        return made

    def score(self, model: Any, rows: Rows, wanted: Wanted = LOGPROBS_ONLY) -> Scored:
        if rows.extras or wanted.aux_loss or not self._takes(model):
            return self._other.score(model, rows, wanted)
        parts = [self._scored(model, ids, mask, rows, wanted) for ids, mask in _at_once(rows, wanted)]
        return parts[0] if len(parts) == 1 else _joined(parts)

    def _takes(self, model: Any) -> bool:
        inner: Any = self._accelerator.unwrap_model(model)
        causal_lm = inner.get_base_model() if is_peft_model(inner) else inner
        if causal_lm not in self._ready:
            self._ready[causal_lm] = why_not_packed(inner) is None
            if self._ready[causal_lm]:
                take_packed_calls(causal_lm)
        return self._ready[causal_lm]

    def _scored(self, model: Any, ids: Tensor, mask: Tensor, rows: Rows, wanted: Wanted) -> Scored:
        packed = share_prompts(ids, mask, rows.completion_ids.size(1))
        call = PackedCall(
            packed,
            self._head,
            wanted.entropy,
            hidden=wanted.for_method and self._hidden,
            trunk=wanted.for_method and self._trunk,
            num_candidates=self._num_candidates if wanted.for_method else 0,
        )
        with self._accelerator.autocast():
            found = {name: packed.padded(values) for name, values in model(packed=call).items()}
        return Scored(found.pop("logprobs"), found.pop("entropy", None), None, found)


def why_not_packed(model: Any) -> str | None:
    """Why a model, bare or with an adapter, is not scored in packed prompt groups; None where it is."""
    if is_peft_model(model):
        if any(one.is_prompt_learning for one in model.peft_config.values()):
            return "its adapter adds virtual tokens to each row"
        model = model.get_base_model()
    return why_not_shared(model) or head_fault(model)


def _at_once(rows: Rows, wanted: Wanted) -> Iterator[tuple[Tensor, Tensor]]:
    ids, mask = rows.joined
    size = wanted.rows_at_once or max(1, ids.size(0))
    for start in range(0, max(1, ids.size(0)), size):
        yield ids[start : start + size], mask[start : start + size]


def _joined(parts: list[Scored]) -> Scored:
    """Of consecutive rows. What the objective needs is asked of whole micro-batches only, so parts hold none."""
    entropy = [part.entropy for part in parts if part.entropy is not None]
    outputs = {name: torch.cat([part.outputs[name] for part in parts]) for name in parts[0].outputs}
    return Scored(
        torch.cat([part.logprobs for part in parts]), torch.cat(entropy) if entropy else None, None, outputs
    )
