"""The numbers of one micro-batch's loss under TRL's names, in one reduction over ranks and one transfer to the host."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor

from posttrain.objectives.base import Objective, TokenBatch
from posttrain.observe.signal import SignalCounts


class LossMetrics:
    """Collects sums and counts, reduces them together, and returns plain floats."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator

    def compute(
        self,
        objective: Objective,
        method: str,
        batch: TokenBatch,
        *,
        keep: Tensor | None,
        kl: Tensor | None,
        entropies: Tensor,
        policy_loss: Tensor,
        signal: SignalCounts,
    ) -> dict[str, float]:
        """Means over the loss tokens of all ranks (a per-response ratio: over responses), and the objective's own
        scalars, as `METHOD/name`, averaged over ranks; the signal account as shares."""
        mask = batch.mask
        sums: dict[str, tuple[Tensor, Tensor]] = {"entropy": _masked(entropies, mask)}
        if kl is not None:
            sums["kl"] = _masked(kl.detach(), mask)
        extremes: dict[str, Tensor] = {}
        bounds = objective.clip_bounds(batch)
        if bounds is not None:
            ratio = objective.ratio(batch).detach()
            low = (ratio < bounds[0]) & (batch.advantages < 0)
            high = (ratio > bounds[1]) & (batch.advantages > 0)
            for name, clipped in (("low", low), ("high", high), ("region", low | high)):
                sums[f"clip_ratio/{name}_mean"] = _masked(clipped.float(), mask)
            extremes["clip_ratio/low_min"] = _per_response(low.float(), mask)
            extremes["clip_ratio/high_max"] = _per_response(high.float(), mask)
        if keep is not None:
            sums["kept_share"] = _masked(keep.float(), mask)
        one = torch.ones((), device=mask.device)
        sums["policy_loss"] = (policy_loss.float(), one)
        for name, value in objective.metrics(batch).items():
            sums[f"{method}/{name}"] = (torch.as_tensor(value, device=mask.device).detach().float(), one)

        # float64 holds token counts exactly beside the sums
        pairs = torch.stack([torch.stack([total.double(), count.double()]) for total, count in sums.values()])
        packed = torch.cat([pairs.flatten(), signal.counts.double()])
        packed = self._accelerator.reduce(packed, reduction="sum")
        pairs = packed[: pairs.numel()].view_as(pairs)
        means = (pairs[:, 0] / pairs[:, 1].clamp(min=1.0)).tolist()
        values = dict(zip(sums, means, strict=True))
        values |= SignalCounts(packed[pairs.numel() :].long()).metrics()
        for name, per_response in extremes.items():
            gathered = self._accelerator.gather(per_response)
            gathered = gathered[~gathered.isnan()]
            if gathered.numel():
                values[name] = (gathered.min() if name.endswith("min") else gathered.max()).item()
        return values


def _masked(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    if values.size(1) == 1:  # one value a response
        return values.sum(), torch.full((), float(values.size(0)), device=values.device)
    return (values * mask).sum(), mask.sum()


def _per_response(values: Tensor, mask: Tensor) -> Tensor:
    if values.size(1) == 1:
        return values.squeeze(1)
    return (values * mask).sum(-1) / mask.sum(-1)
