"""Candidates from the product with the LM head that the log-probs come from: one pass over the head, not two.

TRL's fused head multiplies hidden states by the head tile by tile, and a function of its module folds each tile of
logits into running statistics. While `reading_tiles` is active, a reader of ours looks at the tile after it. The
head's weight is not touched, so nothing is gathered under ZeRO-3 or FSDP2 but what TRL gathers for its log-probs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from posttrain.ops.logprobs import largest, with_sampled
from posttrain.trainers.seam.trl_seam import fused_head

FOLD_ARGUMENTS = (
    *("tile", "tile_stride", "targets", "running_max", "sum_exp", "x_sum_exp", "sq_sum_exp", "z_sum"),
    *("max_before_target", "target_logit", "vocab_start", "n_cols"),
)
"""What upstream hands its fold by position; tests hold it to upstream's signature."""


class TileCandidates:
    """Collects the K most likely ids of the scored positions, the sampled one always among them.

    scored   (P,) bool: which of the fused head's positions, in its order, have a sampled id to score
    compact  whether the fused head leaves the others out of its tiles
    """

    def __init__(self, scored: Tensor, num_candidates: int, *, compact: bool) -> None:
        self._scored = scored
        self._num_candidates = num_candidates
        self._shown = scored[scored] if compact else scored
        self.slope = 1.0  # of the logits along the head's product, a soft cap's own aside
        self._num_shown = 0
        self._rows = scored.nonzero().squeeze(1)[:0]
        self._ids: list[Tensor] = []
        self._logits: list[Tensor] = []
        self._sampled: list[tuple[Tensor, Tensor, Tensor]] = []

    def read(
        self, tile: Tensor, sampled_ids: Tensor, sampled_logits: Tensor, start: int, **head: Any
    ) -> None:
        """One tile: positions x the vocabulary from `start` on, as the head's product left it; `head` as
        `_finished`. sampled_logits fills up while the tiles of these positions pass."""
        if start == 0:
            self.slope = head["logit_scale"] * head["inv_t"]
            self._rows = self._shown[self._num_shown : self._num_shown + len(tile)].nonzero().squeeze(1)
            self._num_shown += len(tile)
            self._sampled.append((self._rows, sampled_ids, sampled_logits))
        if len(self._rows) < len(tile):
            tile = tile[self._rows]
        # the steps from the product to the logit are increasing: what is not chosen can do without them
        values, ids = largest(tile, min(self._num_candidates, tile.size(1)))
        values, ids = _finished(values, **head), ids + start
        if start > 0:  # a further stretch of the vocabulary, for the same positions
            values = torch.cat([self._logits.pop(), values], dim=1)
            values, best = largest(values, min(self._num_candidates, values.size(1)))
            ids = torch.cat([self._ids.pop(), ids], dim=1).gather(1, best)
        self._ids.append(ids)
        self._logits.append(values)

    def result(self) -> tuple[Tensor, Tensor]:
        """Ids and logits (P, K), zeros at the positions that are not scored."""
        if self._num_shown != len(self._shown):
            raise RuntimeError(
                f"TileCandidates: TRL's fused head showed {self._num_shown} positions where {len(self._shown)} "
                "were expected; its tiles have changed"
            )
        actions = torch.cat([ids[rows] for rows, ids, _ in self._sampled])
        chosen = torch.cat([logits[rows] for rows, _, logits in self._sampled])
        found = with_sampled(torch.cat(self._ids), torch.cat(self._logits), actions, chosen)
        ids, logits = (part.new_zeros(len(self._scored), part.size(1)) for part in found)
        ids[self._scored], logits[self._scored] = found
        return ids, logits


def _finished(
    values: Tensor,
    *,
    logit_scale: float,
    softcap: float,
    inv_t: float,
    HAS_SOFTCAP: bool,  # upstream's name
) -> Tensor:
    """From the product with the head to the logits the log-probs are made of."""
    values = values.float() * logit_scale
    if HAS_SOFTCAP:
        values = softcap * torch.tanh(values / softcap)
    return values * inv_t


class _FollowedKernel:
    """A Triton kernel whose launches are followed by `read`: `kernel[grid](...)`."""

    def __init__(self, kernel: Any, read: Callable[..., None]) -> None:
        self._kernel, self._read = kernel, read

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return _followed(self._kernel[grid], self._read)


def _followed(fold: Callable[..., None], read: Callable[..., None]) -> Callable[..., None]:
    def folded(*arguments: Any, **named: Any) -> None:
        fold(*arguments, **named)
        given = dict(zip(FOLD_ARGUMENTS, arguments, strict=True))
        head = {name: named[name] for name in ("logit_scale", "softcap", "inv_t", "HAS_SOFTCAP")}
        read(given["tile"], given["targets"], given["target_logit"], given["vocab_start"], **head)

    return folded


@contextmanager
def reading_tiles(scored: Tensor, num_candidates: int) -> Iterator[TileCandidates]:
    """While active, the next pass of the fused head also fills the candidates. Not for several at a time.

    scored  (P,) bool, on the device of the head
    """
    candidates = TileCandidates(scored, num_candidates, compact=fused_head._use_triton(scored.device))
    tile, kernel = fused_head._forward_tile, fused_head._forward_kernel
    fused_head._forward_tile = _followed(tile, candidates.read)
    fused_head._forward_kernel = _FollowedKernel(kernel, candidates.read)
    try:
        yield candidates
    finally:
        fused_head._forward_tile, fused_head._forward_kernel = tile, kernel
