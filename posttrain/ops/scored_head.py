"""Log-probs of tokens straight from the LM head's input: no (N, V) tensor is kept, in the forward or for the backward.

The head is worked through a few positions at a time, so many that their logits stay in the cache of a processor; from
one such tile come the log-prob, the entropy and the most likely candidates. The backward makes each tile anew, turns
it into the gradient with respect to the logits in place, and multiplies on from there.

N positions, H hidden size, V vocabulary, K candidates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from posttrain.ops.logprobs import largest, with_sampled

TILE_ELEMENTS = 1 << 21
"""Logits of one tile: 8 MB in float32. Twice as many or half as many cost the same on the machines tried."""
LEAST_ROWS = 128
"""Fewer positions at a time leave the matrix product waiting for the head's weight: with a vocabulary of 49k, 43 rows
at a time cost 12 % more than 170."""


@dataclass(frozen=True)
class HeadShape:
    """What a model does between the product with its head and the logits, and the sampling temperature.

    logits = softcap * tanh(scale * (hidden @ weight.T + bias) / softcap) / temperature; without a softcap no tanh
    """

    scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0

    @property
    def slope(self) -> float:
        """Of the logits along the product, the softcap's own aside."""
        return self.scale / self.temperature

    def logits_(self, product: Tensor) -> Tensor:
        """The product as logits, in place."""
        if self.softcap is None:
            return product if self.slope == 1.0 else product.mul_(self.slope)
        return product.mul_(self.scale / self.softcap).tanh_().mul_(self.softcap / self.temperature)

    def chain_(self, gradient: Tensor, logits: Tensor | None) -> Tensor:
        """The gradient with respect to the logits as one with respect to the product, in place."""
        if self.softcap is None:
            return gradient if self.slope == 1.0 else gradient.mul_(self.slope)
        assert logits is not None
        bent = logits.mul_(self.temperature / self.softcap).square_().neg_().add_(1.0)
        return gradient.mul_(bent).mul_(self.slope)


@dataclass(frozen=True)
class ScoredTokens:
    """logprobs (N,) of the targets; entropy (N,) in nats; candidate_ids and candidate_logits (N, K), most likely first,
    the target always among them. What was not asked for is None. Candidates carry no gradient."""

    logprobs: Tensor
    entropy: Tensor | None = None
    candidate_ids: Tensor | None = None
    candidate_logits: Tensor | None = None


def scored_tokens(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    shape: HeadShape | None = None,
    entropy: bool = False,
    num_candidates: int = 0,
    tile_elements: int = TILE_ELEMENTS,
) -> ScoredTokens:
    """Scores `targets` (N,) under a head of `weight` (V, H) and `bias` (V,) on `hidden` (N, H).

    Products run in the dtype of `hidden`, or of autocast; everything behind them in float32 at least. Gradients reach
    hidden, weight and bias through the log-probs and, where asked for, the entropy.
    """
    if hidden.dim() != 2 or targets.shape != hidden.shape[:1]:
        raise ValueError(
            f"scored_tokens: hidden {tuple(hidden.shape)} and targets {tuple(targets.shape)} must be (N, H) and (N,)"
        )
    rows = max(LEAST_ROWS, tile_elements // weight.size(0))
    options = _Options(shape or HeadShape(), rows, entropy, num_candidates)
    logprobs, entropies, ids, logits = _Head.apply(hidden, weight, bias, targets, options)
    return ScoredTokens(logprobs, entropies, ids, logits)


@dataclass(frozen=True)
class _Options:
    shape: HeadShape
    rows: int
    entropy: bool
    num_candidates: int


class _Head(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, options: _Options
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        ctx.set_materialize_grads(False)
        tiles = _Tiles(hidden, weight, bias, options)
        count, wide = hidden.size(0), tiles.wide
        logprobs, log_z = (torch.empty(count, dtype=wide, device=hidden.device) for _ in range(2))
        entropy = torch.empty_like(logprobs) if options.entropy else None
        found: list[tuple[Tensor, Tensor]] = []
        for start, end in tiles.spans():
            logits = tiles.logits(start, end)
            target = targets[start:end, None]
            chosen = logits.gather(1, target)
            if options.num_candidates:
                values, ids = largest(logits, min(options.num_candidates, logits.size(1)))
                found.append(with_sampled(ids, values, target[:, 0], chosen[:, 0]))
            highest = logits.amax(dim=1, keepdim=True)
            logits.sub_(highest)
            if entropy is None:
                total = logits.exp_().sum(dim=1)
            else:
                weights = logits.exp()
                total = weights.sum(dim=1)
                entropy[start:end] = total.log() - _dot(weights, logits) / total
            log_z[start:end] = highest[:, 0] + total.log()
            logprobs[start:end] = chosen[:, 0] - log_z[start:end]
        ctx.save_for_backward(hidden, weight, bias, targets, log_z, entropy)
        ctx.options = options
        ids, values = (torch.cat(parts) for parts in zip(*found, strict=True)) if found else (None, None)
        ctx.mark_non_differentiable(*(part for part in (ids, values) if part is not None))
        return logprobs, entropy, ids, values

    @staticmethod
    def backward(ctx: Any, by_logprobs: Tensor | None, by_entropy: Tensor | None, *_: Any) -> Any:
        hidden, weight, bias, targets, log_z, entropy = ctx.saved_tensors
        tiles = _Tiles(hidden, weight, bias, ctx.options)
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        for_hidden = torch.zeros_like(hidden) if needs_hidden else None
        for_weight = (
            torch.zeros(weight.shape, dtype=tiles.wide, device=weight.device) if needs_weight else None
        )
        for_bias = torch.zeros(weight.size(0), dtype=tiles.wide, device=weight.device) if needs_bias else None
        shape = ctx.options.shape
        for start, end in tiles.spans():
            logits = tiles.logits(start, end)
            kept = None if shape.softcap is None else logits.clone()
            gradient = _by_logits_(
                logits.sub_(log_z[start:end, None]),
                targets[start:end, None],
                None if by_logprobs is None else by_logprobs[start:end, None].to(tiles.wide),
                None if by_entropy is None else by_entropy[start:end, None].to(tiles.wide),
                None if entropy is None else entropy[start:end, None],
            )
            gradient = shape.chain_(gradient, kept)
            if for_bias is not None:
                for_bias += gradient.sum(dim=0)
            narrow = gradient.to(tiles.narrow)
            if for_hidden is not None:
                for_hidden[start:end] = (narrow @ weight.to(tiles.narrow)).to(hidden.dtype)
            if for_weight is not None:
                for_weight.addmm_(gradient.t(), hidden[start:end].to(tiles.wide))
        return (
            for_hidden,
            None if for_weight is None else for_weight.to(weight.dtype),
            None if for_bias is None or bias is None else for_bias.to(bias.dtype),
            None,
            None,
        )


def _by_logits_(
    logprobs: Tensor,
    targets: Tensor,
    by_logprob: Tensor | None,
    by_entropy: Tensor | None,
    entropy: Tensor | None,
) -> Tensor:
    """The gradient with respect to the logits (n, V), in place of all their log-probs.

    d log p_a / d z_j = [j = a] - p_j and d H / d z_j = -p_j (log p_j + H).
    """
    if by_entropy is None or entropy is None:
        gradient = logprobs.exp_()
        gradient = gradient.mul_(-by_logprob) if by_logprob is not None else gradient.zero_()
    else:
        factor = (logprobs + entropy).mul_(-by_entropy)
        if by_logprob is not None:
            factor.sub_(by_logprob)
        gradient = logprobs.exp_().mul_(factor)
    return gradient if by_logprob is None else gradient.scatter_add_(1, targets, by_logprob)


class _Tiles:
    """The logits of a few positions at a time, in one buffer."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, options: _Options) -> None:
        device = hidden.device.type
        casts = torch.is_autocast_enabled(device)
        self.narrow = torch.get_autocast_dtype(device) if casts else hidden.dtype
        self.wide = torch.promote_types(self.narrow, torch.float32)
        self._hidden, self._bias, self._options = hidden, bias, options
        self._head = weight.to(self.narrow).t()
        self._buffer = torch.empty(
            min(options.rows, hidden.size(0)), weight.size(0), dtype=self.narrow, device=hidden.device
        )

    def spans(self) -> list[tuple[int, int]]:
        count, rows = self._hidden.size(0), self._options.rows
        return [(start, min(start + rows, count)) for start in range(0, count, rows)]

    def logits(self, start: int, end: int) -> Tensor:
        """Logits (n, V); they may be changed, and are gone with the next call."""
        tile = self._buffer[: end - start]
        torch.mm(self._hidden[start:end].to(self.narrow), self._head, out=tile)
        if self._bias is not None:
            tile.add_(self._bias.to(self.narrow))
        return self._options.shape.logits_(tile.to(self.wide))


def _dot(one: Tensor, other: Tensor) -> Tensor:
    """Of rows (n, V) with each other, (n,)."""
    return torch.linalg.vecdot(one, other)
