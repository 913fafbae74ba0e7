"""The numbers of one optimizer step of an image method: collected at each denoising step, reduced once."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from posttrain.objectives.base import TokenBatch
from posttrain.objectives.flow_base import FlowObjective
from posttrain.observe.signal import SignalCounts


class FlowMetrics:
    """`add` for each micro-batch at each step, `flush` at the end of the optimizer step. Means are over (image, step)
    pairs whose advantage is not 0."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._clear()

    def _clear(self) -> None:
        self._sums: dict[str, tuple[Tensor, Tensor]] = {}
        self._signal: SignalCounts | None = None

    def add(
        self,
        objective: FlowObjective,
        method: str,
        batch: TokenBatch,
        *,
        share: Tensor,
        kl: Tensor | None,
        first: bool,
        signal: SignalCounts,
    ) -> None:
        """share, first  this pass's share () of the step's loss, and whether it is this rank's first: shares add up"""
        mask = batch.mask.double()
        log_ratio = (batch.logprobs - batch.old_logprobs).detach().double()
        ratio, (low, high) = objective.ratio(batch).detach(), objective.clip_bounds(batch)
        below = ((ratio < low) & (batch.advantages < 0)).double()
        above = ((ratio > high) & (batch.advantages > 0)).double()
        count = mask.sum()
        for name, values in (
            ("clip_ratio/low_mean", below),
            ("clip_ratio/high_mean", above),
            ("clip_ratio/region_mean", below + above),
            (f"{method}/outside_below", (ratio < low).double()),
            (f"{method}/outside_above", (ratio > high).double()),
            (f"{method}/log_ratio", log_ratio),
            (f"{method}/log_ratio_square", log_ratio.square()),
        ):
            self._add(name, (values * mask).sum(), count)
        self._add(f"{method}/kept_share", count, torch.full_like(count, float(mask.numel())))
        one = torch.ones((), device=mask.device, dtype=torch.float64)
        ranks = self._accelerator.num_processes
        self._add("policy_loss", share.detach().double(), one / ranks if first else one * 0)
        if kl is not None:
            self._add("kl", (kl.detach().double() * mask).sum(), count)
        self._signal = signal if self._signal is None else self._signal + signal

    def _add(self, name: str, total: Tensor, count: Tensor) -> None:
        before = self._sums.get(name)
        self._sums[name] = (total, count) if before is None else (before[0] + total, before[1] + count)

    def flush(self) -> dict[str, float]:
        """The step's numbers over all ranks, and an empty slate."""
        if self._signal is None:
            return {}
        pairs = torch.stack([torch.stack(pair) for pair in self._sums.values()])
        packed: Any = torch.cat([pairs.flatten(), self._signal.counts.double()])
        packed = self._accelerator.reduce(packed, reduction="sum")
        summed = packed[: pairs.numel()].view_as(pairs)
        means = summed[:, 0] / torch.where(summed[:, 1] == 0, torch.ones_like(summed[:, 1]), summed[:, 1])
        values = dict(zip(self._sums, means.tolist(), strict=True))
        for name in [name for name in values if name.endswith("/log_ratio_square")]:
            mean = values[name.removesuffix("_square")]
            spread = max(0.0, values.pop(name) - mean**2) ** 0.5
            values[name.removesuffix("_square") + "_std"] = spread
        values |= SignalCounts(packed[pairs.numel() :].long()).metrics()
        self._clear()
        return values
