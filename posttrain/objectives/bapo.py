"""BAPO, balanced policy optimisation with adaptive clipping. 2025, https://arxiv.org/abs/2510.18927

Against DAPO: the clip bounds are found anew at every update. They are loosened until tokens with positive
advantage make up a target share of the surrogate's sum (eq. 8, algorithm 1), instead of being fixed.
Departures: none by default. Paper and released code disagree on order, metric and values; `preset` names the
two. `counted: gradient` is ours. The search is one pass over the grid instead of a loop, with the same result: see
`search_bounds`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import pydantic.dataclasses
import torch
from annotated_types import Ge, Gt
from torch import Tensor

from posttrain.objectives.base import AllSum, Groups, Objective, StepTotals, TokenBatch
from posttrain.ops.groups import Scale, scaled_advantages
from posttrain.ops.ratio import LOG_RATIO_LIMIT, token_ratio
from posttrain.ops.reduce import per_token
from posttrain.ops.surrogate import clipped_surrogate, dual_clip
from posttrain.settings import WINDOW, Note, RunCurves, Triple

Order = Literal["upper_first", "lower_first"]
Metric = Literal["share", "ratio"]
Counted = Literal["value", "gradient"]
Range = tuple[float, float, float]
"""(start, end, step) of a bound, as absolute ratios."""

RATIO_EPSILON = 1e-8
LARGEST_GRID = 1000
GRID_TOLERANCE = 1e-9  # start + n * step may miss the end by a rounding error and still counts as reaching it

_PRESETS: dict[str, dict[str, Any]] = {
    "paper": {  # section 5.1
        "target": 0.4,
        "low": (0.6, 0.9, 0.02),
        "high": (1.2, 3.0, 0.05),
        "order": "upper_first",
        "metric": "share",
        "scope": "step",
        "dual_clip": None,
    },
    "recipe": {  # the released code with its YAML
        "target": 1.0,
        "low": (0.6, 0.8, 0.05),
        "high": (1.2, 2.0, 0.05),
        "order": "lower_first",
        "metric": "ratio",
        "scope": "microbatch",
        "dual_clip": 3.0,
    },
}


class ClipBounds(NamedTuple):
    """Bounds of the ratio and the positive share (or pos/neg ratio) they give; float64 tensors () on the
    input's device, so that choosing them waits for no device."""

    low: Tensor
    high: Tensor
    share: Tensor


def search_bounds(
    log_ratio: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    target: float = 0.4,
    low: Range = (0.6, 0.9, 0.02),
    high: Range = (1.2, 3.0, 0.05),
    order: Order = "upper_first",
    metric: Metric = "share",
    counted: Counted = "value",
    all_sum: AllSum | None = None,
) -> ClipBounds:
    """The tightest bounds of the search path whose positive share reaches `target`, or its end (algorithm 1).

    log_ratio (B, T), advantages (B,), (B, 1) or (B, T), mask (B, T). `low` and `high` are (start, end, step).
    metric  "share": pos / (pos + neg), the paper's; "ratio": pos / (neg + 1e-8), the released code's
    order   "upper_first", the paper's: the upper bound moves until exhausted, then the lower; whole steps
            only. "lower_first", the released code's: the lower, then the upper; the last step is cut to the
            end.
    counted "value", both sources': a clipped token stays in its sum, at the bound. "gradient", ours: it leaves it,
            as it leaves the gradient

    pos = sum over A > 0 of min(r, high) A;  neg = sum over A < 0 of max(r, low) |A|. Raising `low` raises
    neg: the token loses its gradient but not its place in the sum. So no step of the lower bound can ever
    reach the target. In either order it moves to its end if the search needs it at all, and only the upper
    bound is searched. Where gradients are counted, raising either bound raises the share, and both are searched.
    Nothing with an advantage in the mask counts as reached (share 1, ratio inf), and so
    does a batch without negatives. NaN in an unmasked log-ratio gives a NaN share and the loosest bounds.
    """
    search = _Search(target, tuple(low), tuple(high), order, metric, counted)
    sums = search.sums(log_ratio, advantages, mask)
    return search.choose(sums if all_sum is None else all_sum(sums))


@dataclass(frozen=True)
class _Search:
    """The search as sums, which add up over micro-batches and ranks, and the choice made from them."""

    target: float
    low: tuple[float, ...]
    high: tuple[float, ...]
    order: Order
    metric: Metric
    counted: Counted = "value"

    @property
    def lowers(self) -> list[float]:
        return _grid(self.low, truncate=self.order == "lower_first")

    @property
    def ends(self) -> tuple[float, float]:
        """First and last value of the lower bound on the search path."""
        return self.lowers[0], self.lowers[-1]

    @property
    def uppers(self) -> list[float]:
        return _grid(self.high, truncate=self.order == "lower_first")

    def sums(self, log_ratio: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
        """pos at each upper bound, (len(uppers) + 2,) with neg at the lower bound's start and at its end; where
        gradients are counted, (len(uppers) + len(lowers),) with neg at each lower bound."""
        # float64: sums over 1e5 tokens decide a comparison, which float32 could decide otherwise from rank to rank
        counted = mask.detach() > 0
        ratio = log_ratio.detach().double().clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
        ratio = torch.where(counted, ratio, 0.0)
        weights = advantages.detach().double()
        weights = (weights.unsqueeze(1) if weights.dim() == 1 else weights).expand_as(ratio)
        weights = torch.where(counted, weights * mask.detach(), 0.0)
        gains, costs = weights.clamp(min=0), (-weights).clamp(min=0)
        if self.counted == "gradient":
            positive = [(ratio * gains)[ratio <= bound].sum() for bound in self.uppers]
            negative = [(ratio * costs)[ratio >= bound].sum() for bound in self.lowers]
            return torch.stack(positive + negative)
        # a loop, not one (grid, B, T) tensor: that would be 37 times the batch
        positive = [(ratio.clamp(max=bound) * gains).sum() for bound in self.uppers]
        negative = [(ratio.clamp(min=bound) * costs).sum() for bound in self.ends]
        return torch.stack(positive + negative)

    def measure(self, positive: Tensor, negative: Tensor) -> Tensor:
        if self.metric == "ratio":
            return torch.where(negative <= 0, torch.inf, positive / (negative + RATIO_EPSILON))
        total = positive + negative
        return torch.where(total == 0, 1.0, positive / torch.where(total == 0, 1.0, total))

    def before(self, sums: Tensor) -> Tensor:
        """The measure at the start of both bounds. ()."""
        return self.measure(sums[0], sums[len(self.uppers)])

    def choose(self, sums: Tensor) -> ClipBounds:
        if self.counted == "gradient":
            return self._choose_on_path(sums)
        first, last = self.ends
        uppers = sums.new_tensor(self.uppers)
        at_first = self.measure(sums[:-2], sums[-2])
        at_last = self.measure(sums[:-2], sums[-1])
        moves_first = at_last if self.order == "lower_first" else at_first
        reached = moves_first >= self.target
        # argmax finds the first True; where there is none, the last upper bound
        index = torch.where(reached.any(), reached.int().argmax(), len(self.uppers) - 1)
        stays = at_first[0] >= self.target
        index = torch.where(stays, 0, index)
        if self.order == "upper_first":
            at_start = reached.any()
        else:
            at_start = stays
        low = torch.where(at_start, first, sums.new_tensor(last))
        share = torch.where(at_start, at_first[index], at_last[index])
        return ClipBounds(low, uppers[index], share)

    def _choose_on_path(self, sums: Tensor) -> ClipBounds:
        """The first point that reaches the target, of all: one bound's grid, then the other's."""
        lows, highs = len(self.lowers), len(self.uppers)
        if self.order == "upper_first":
            path = [(0, high) for high in range(highs)] + [(low, highs - 1) for low in range(1, lows)]
        else:
            path = [(low, 0) for low in range(lows)] + [(lows - 1, high) for high in range(1, highs)]
        low, high = torch.tensor(path, device=sums.device).unbind(dim=1)
        shares = self.measure(sums[:highs][high], sums[highs:][low])
        reached = shares >= self.target
        # argmax finds the first True; where there is none, the path's end
        index = torch.where(reached.any(), reached.int().argmax(), len(path) - 1)
        lowers, uppers = sums.new_tensor(self.lowers), sums.new_tensor(self.uppers)
        return ClipBounds(lowers[low[index]], uppers[high[index]], shares[index])


def _grid(bound: tuple[float, ...], *, truncate: bool) -> list[float]:
    """start, start + step, ... up to end; with `truncate` the end itself is always the last point."""
    start, end, step = bound
    # start + n * step, not a running sum: 1.2 + 0.05 + ... would miss 3.0 and lose a step
    count = int((end - start) / step + GRID_TOLERANCE) if step > 0 else 0
    grid = [start + n * step for n in range(count + 1)]
    if abs(grid[-1] - end) <= GRID_TOLERANCE:
        grid[-1] = end
    elif truncate:
        grid.append(end)
    return grid


def _check_range(name: str, bound: Sequence[float]) -> None:
    start, end, step = bound
    if not 0 <= start <= end:
        raise ValueError(f"BAPO: {name} = {tuple(bound)} must be (start, end, step) with 0 <= start <= end")
    if start < end and step <= 0:
        raise ValueError(f"BAPO: {name} = {tuple(bound)} must have a step above 0 to get from start to end")
    if start < end and (end - start) / step > LARGEST_GRID:
        raise ValueError(
            f"BAPO: {name} = {tuple(bound)} has more than {LARGEST_GRID} steps, each a pass over the batch"
        )


_SHORTEST = 5
"""Logged steps from which on bounds of a whole run that stood still say something."""


@pydantic.dataclasses.dataclass(frozen=True)
class BAPO(Objective):
    """A setting left at None is filled in from the preset at construction: see `_PRESETS`."""

    observes_step: ClassVar[bool] = True
    observes_only_ratio: ClassVar[bool] = True
    divides_by_tokens: ClassVar[bool] = True

    preset: Literal["paper", "recipe"] = "paper"
    """whose values fill what is not set: section 5.1, or the code's"""
    target: Annotated[float, Ge(0)] | None = None
    """rho_0 (metric share: 0.4), or k (metric ratio: 1.0)"""
    low: Triple | None = None
    """a-, b-, delta_2: start, end, step of the lower bound"""
    high: Triple | None = None
    """a+, b+, delta_1: start, end, step of the upper bound"""
    order: Literal["upper_first", "lower_first"] | None = None
    """which bound moves first"""
    metric: Literal["share", "ratio"] | None = None
    """pos / (pos + neg), or pos / neg"""
    scope: Literal["step", "microbatch"] | None = None
    """what the sums run over, always over all ranks"""
    counted: Literal["value", "gradient"] = "value"
    """whether clipped tokens stay in the sums; "gradient" is ours"""
    dual_clip: Annotated[float, Gt(1)] | None = None
    """c of dual-clip PPO, a bound; for A < 0"""
    scale: Scale = "group"
    """whose standard deviation divides the advantage"""

    def __post_init__(self) -> None:
        for name, value in _PRESETS[self.preset].items():
            if vars(self)[name] is None:
                object.__setattr__(self, name, value)
        filled = vars(self)
        _check_range("low", filled["low"])
        _check_range("high", filled["high"])
        if filled["low"][1] > filled["high"][0]:
            raise ValueError(
                f"BAPO: low = {filled['low']} may rise above the start of high = {filled['high']}"
            )
        if filled["metric"] == "share" and filled["target"] > 1:
            raise ValueError(
                f"BAPO: target = {filled['target']} is no share; set metric: ratio, or at most 1"
            )

    @classmethod
    def notes(cls, curves: RunCurves) -> Iterator[Note]:
        """Adaptive bounds that never moved are a fixed clip in disguise."""
        low, high = curves.of("clip_low")[1], curves.of("clip_high")[1]
        share = curves.of("positive_share_before")[1]
        enough = len(low) >= _SHORTEST if curves.ended else curves.logged == WINDOW
        if share and enough and len(set(low)) == len(set(high)) == 1:
            yield Note(
                "still bounds",
                f"Adaptive bounds inactive: {curves.method} was a fixed clip ({low[0]:.2f}, {high[0]:.2f}) throughout. "
                f"The positive share lay at {min(share):.2f}-{max(share):.2f}; bounds move only when it crosses the "
                "target.",
            )

    def advantages(self, groups: Groups) -> dict[str, Tensor]:
        return {"advantages": scaled_advantages(groups.rewards, self.scale)}

    def observe_step(self, batches: Sequence[TokenBatch], all_sum: AllSum) -> dict[str, Any]:
        """One reduction for all micro-batches; tensors () with scope "step", (micro-batches,) with
        "microbatch"."""
        search = self._search()
        sums = torch.stack(
            [search.sums(b.logprobs - b.old_logprobs, b.advantages, b.mask) for b in batches]
        )  # (micro-batches, grid + 2)
        sums = all_sum(sums.sum(dim=0, keepdim=True) if self.scope == "step" else sums)
        bounds = [(*search.choose(row), search.before(row)) for row in sums.unbind()]
        low, high, share, before = (torch.stack(values) for values in zip(*bounds, strict=True))
        named = {"clip_low": low, "clip_high": high, "positive_share": share, "positive_share_before": before}
        return {name: values[0] for name, values in named.items()} if self.scope == "step" else named

    def token_loss(self, batch: TokenBatch) -> Tensor:  # (B, T)
        ratio = token_ratio(batch.logprobs, batch.old_logprobs)
        losses = clipped_surrogate(ratio, batch.advantages, *self.clip_bounds(batch))
        return losses if self.dual_clip is None else dual_clip(losses, batch.advantages, self.dual_clip)

    def clip_bounds(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        return self._observed(batch, "clip_low"), self._observed(batch, "clip_high")

    def reduce(self, losses: Tensor, mask: Tensor, totals: StepTotals) -> Tensor:  # ()
        return per_token(losses, mask, totals.num_tokens)

    def metrics(self, batch: TokenBatch) -> dict[str, Tensor]:
        """Bounds, the share at them and before the search, and the largest ratio of a token with A < 0."""
        names = ("clip_low", "clip_high", "positive_share", "positive_share_before")
        negative = (batch.advantages < 0) & (batch.mask > 0)
        ratio = token_ratio(batch.logprobs.detach(), batch.old_logprobs)
        largest = torch.where(negative, ratio, 0.0).max()
        return {name: self._observed(batch, name) for name in names} | {"negative_ratio_max": largest}

    def _search(self) -> _Search:
        filled = vars(self)  # __post_init__ left no None in these
        low, high = tuple(filled["low"]), tuple(filled["high"])
        return _Search(filled["target"], low, high, filled["order"], filled["metric"], self.counted)

    def _observed(self, batch: TokenBatch, name: str) -> Tensor:
        if name not in batch.step:
            raise ValueError("BAPO: this batch has no bounds; give observe_step's result to TokenBatch.step")
        values = batch.step[name]
        if self.scope == "step":
            return values
        if batch.index is None and len(values) > 1:
            raise ValueError(
                "BAPO: scope 'microbatch' needs TokenBatch.index to know which bounds are its own"
            )
        return values[batch.index or 0]
