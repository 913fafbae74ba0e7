"""The numbers of one optimizer step's loss, under TRL's names where TRL has them.

Sums and counts stay on the device over all micro-batches and are reduced over ranks once a step, so that a mean
is over the step's tokens however they were split, and the host waits once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from accelerate import Accelerator
from torch import Tensor

from posttrain.objectives.base import Objective, TokenBatch
from posttrain.objectives.logged_rows import samples_only
from posttrain.observe.reasons import PREFIX
from posttrain.observe.signal import SignalCounts
from posttrain.rollout.logged import LOGGED
from posttrain.settings.beta_family import METRICS

_EXTREMES = ("_max", "_min")


class LossMetrics:
    """`add` for each micro-batch, `flush` at the end of the optimizer step."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._clear()

    def _clear(self) -> None:
        self._sums: dict[str, tuple[Tensor, Tensor]] = {}
        self._extremes: dict[str, list[Tensor]] = {}
        self._signal: SignalCounts | None = None
        self._logged: SignalCounts | None = None

    def add(
        self,
        objective: Objective,
        method: str,
        batch: TokenBatch,
        *,
        keep: Tensor | None,
        kl: Tensor | None,
        families: Mapping[str, Tensor] | None = None,
        entropies: Tensor,
        share: Tensor,
        first: bool,
        aux_loss: Tensor | None = None,
        signal: SignalCounts,
        logged: SignalCounts | None = None,
    ) -> None:
        """One micro-batch. Means are over loss tokens (a per-response ratio: over responses); the objective's own
        scalars, `METHOD/name`, are averaged over micro-batches and ranks, by their loss tokens; of one that ends in
        _max or _min the highest or lowest counts.

        They are of samples; logged answers have a few of their own.

        families      name -> the rows (B, 1) whose mean KL it is
        share, first  this micro-batch's share () of the step's loss, and whether it is this rank's first: shares add up
        """
        whole, batch = batch, samples_only(batch)
        mask, given = batch.mask, batch.logged
        self._add("entropy", *_masked(entropies, mask))
        if kl is not None:
            self._add("kl", *_masked(kl.detach(), mask))
            for name, rows in (families or {}).items():
                self._add(name, *_masked(kl.detach(), mask * rows))
        bounds = objective.clip_bounds(batch)
        if bounds is not None:
            ratio = objective.ratio(batch).detach()
            advantages = objective.effective_advantages(batch)
            low = (ratio < bounds[0]) & (advantages < 0)
            high = (ratio > bounds[1]) & (advantages > 0)
            low, high = (one if given is None else one & ~given for one in (low, high))
            for name, clipped in (("low", low), ("high", high), ("region", low | high)):
                self._add(f"clip_ratio/{name}_mean", *_masked(clipped.float(), mask, given))
            self._extremes.setdefault("clip_ratio/low_min", []).append(
                _response_means(low.float(), mask, given)
            )
            self._extremes.setdefault("clip_ratio/high_max", []).append(
                _response_means(high.float(), mask, given)
            )
        if keep is not None:
            self._add("kept_share", *_masked(keep.float(), mask))
        one = torch.ones((), device=mask.device)
        self._add("policy_loss", share.detach(), one / self._accelerator.num_processes if first else one * 0)
        if aux_loss is not None:
            self._add("aux_loss", aux_loss.detach(), one)
        tokens = mask.sum().clamp(min=1)
        for name, value in objective.metrics(batch).items():
            value = torch.as_tensor(value, device=mask.device).detach()
            if name.endswith(_EXTREMES):
                self._extremes.setdefault(f"{method}/{name}", []).append(value.reshape(1))
            else:
                self._add(f"{method}/{name}", value * tokens, tokens)
        self._signal = signal if self._signal is None else self._signal + signal
        if logged is not None:
            self._add_logged(objective, whole, logged)

    def _add_logged(self, objective: Objective, batch: TokenBatch, counts: SignalCounts) -> None:
        """Of the logged answers: their account, their share of the loss tokens, and what the policy thinks of them."""
        self._logged = counts if self._logged is None else self._logged + counts
        mask = batch.mask - samples_only(batch).mask
        self._add(LOGGED + "token_share", mask.sum(), batch.mask.sum())
        self._add(LOGGED + "probability", *_masked(batch.logprobs.detach().exp(), mask))
        if batch.shaping is None:
            ratio = objective.ratio(batch).detach()
            self._add(LOGGED + "ratio", *_masked(ratio.expand_as(mask), mask))

    def flush(self) -> dict[str, float]:
        """The step's numbers over all ranks, and an empty slate. One collective, and one wait for the device."""
        sums, signal = self._sums, self._signal
        if signal is None:
            return {}
        # float64 holds token counts exactly beside the sums
        pairs = [one for pair in sums.values() for one in pair]
        extremes = [_extreme(name, torch.cat(parts)) for name, parts in self._extremes.items()]
        counts = [signal] if self._logged is None else [signal, self._logged]
        packed = torch.cat(
            [torch.stack([*pairs, *extremes]).double(), *(one.counts.double() for one in counts)]
        )
        ranks = torch.as_tensor(self._accelerator.gather(packed[None])).cpu()
        totals = ranks[:, : len(pairs)].sum(0).view(-1, 2)
        means = (totals[:, 0] / totals[:, 1].clamp(min=1.0)).tolist()
        none = (totals[:, 1] == 0).tolist()
        # a step without a logged answer, or a response of a value, has no mean of them
        values = {
            name: mean
            for name, mean, empty in zip(sums, means, none, strict=True)
            if not (empty and name.startswith((LOGGED, METRICS)))
        }
        counted = len(pairs) + len(extremes)
        for prefix, found in zip(
            (PREFIX, LOGGED), ranks[:, counted:].sum(0).view(len(counts), -1), strict=False
        ):
            values |= SignalCounts(found.long()).metrics(prefix)
        for name, column in zip(self._extremes, ranks[:, len(pairs) : counted].unbind(1), strict=True):
            value = _extreme(name, column).item()
            if not math.isnan(value):
                values[name] = value
        self._clear()
        return values

    def _add(self, name: str, total: Tensor, count: Tensor) -> None:
        before = self._sums.get(name)
        total, count = total.double(), count.double()
        self._sums[name] = (total, count) if before is None else (before[0] + total, before[1] + count)


def _extreme(name: str, values: Tensor) -> Tensor:
    """The lowest or highest () as the name says; NaN, of a response without loss tokens, only where all are."""
    lowest, none = name.endswith("min"), values.isnan()
    found = values.masked_fill(none, math.inf if lowest else -math.inf)
    found = found.min() if lowest else found.max()
    return torch.where(none.all(), torch.nan, found).double()


def _masked(values: Tensor, mask: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Sum and count; given (B, 1): responses whose one value does not count."""
    if values.size(1) == 1:  # one value per response
        counted = torch.ones_like(values) if given is None else (~given).to(values)
        return (values * counted).sum(), counted.sum()
    return (values * mask).sum(), mask.sum()


def _response_means(values: Tensor, mask: Tensor, given: Tensor | None = None) -> Tensor:
    if values.size(1) == 1:
        return (values if given is None else values.masked_fill(given, torch.nan)).squeeze(1)
    return (values * mask).sum(-1) / mask.sum(-1)
