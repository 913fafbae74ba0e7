"""Stops a run at the first number that is not finite, on all ranks together, and keeps such weights off the disk.

What the forward computes is noted on the device while it passes; once an optimizer step, between the last backward
and the update, the notes are summed over ranks and the host waits once. (transformers would replace a NaN loss by 0.0
in the log, and wait for each micro-batch to do so.) Weights are looked at when they are about to be saved.
"""

# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportArgumentType=false
# A mixin: what it reads is the trainer's.

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate.utils import DistributedType, gather_object
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers.trainer_utils import get_last_checkpoint

from posttrain.objectives.base import Groups
from posttrain.trainers.seam.faults import NotFinite

LOSS = "the loss"
GRADIENT = "the gradient norm"
LOWEST_SCALE = 1.0
"""Below this loss scale float16 gradients are not made larger any more, so an overflow is the gradient's own."""


class StepNotes:
    """Which tensors of the optimizer step in hand hold a NaN or an infinity, in the order they were first noted."""

    def __init__(self) -> None:
        self._bad: dict[str, Tensor] = {}

    def note(self, name: str, values: Tensor | None, mask: Tensor | None = None) -> None:
        """Looks at `values`, where `mask` is not 0 if one is given. Nothing waits for the device."""
        if values is None:
            return
        bad = ~values.detach().isfinite()
        if mask is not None:
            bad = bad & mask.bool()
        found = bad.any()
        before = self._bad.get(name)
        self._bad[name] = found if before is None else before | found.to(before.device)

    def take(self) -> dict[str, Tensor]:
        """The flags (), and an empty slate."""
        taken, self._bad = self._bad, {}
        return taken


class FiniteSteps:
    """Mixin before a `transformers.Trainer`: raises `NotFinite`, on every rank, instead of going on without numbers."""

    _notes: StepNotes | None = None

    @property
    def step_notes(self) -> StepNotes:
        if self._notes is None:
            self._notes = StepNotes()
        return self._notes

    def train(self, *arguments: Any, **named: Any) -> Any:
        """As upstream's, without its filter that logs a NaN loss as 0.0. Raises NotFinite."""
        self.args.logging_nan_inf_filter = False
        return super().train(*arguments, **named)

    def training_step(self, *arguments: Any, **named: Any) -> Tensor:
        loss = super().training_step(*arguments, **named)
        self.step_notes.note(LOSS, loss)
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Also the last look before the update."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        flags = self.step_notes.take()
        if norm is not None:
            flags[GRADIENT] = _as_plain(norm, self.accelerator.device).isfinite().all().logical_not()
        bad = self._bad_anywhere(flags)
        if bad == [GRADIENT] and self._loss_scale_may_fall():
            return norm  # the scaler leaves this update out and tries again with a smaller scale
        if bad:
            self.stop_not_finite(bad[0], f"step {self.state.global_step + 1}")
        return norm

    def evaluate(self, *arguments: Any, **named: Any) -> dict[str, float]:
        """As upstream's. Raises NotFinite where the measured loss is none."""
        metrics = super().evaluate(*arguments, **named)
        prefix = named.get("metric_key_prefix", "eval")
        for name, value in metrics.items():
            if name.startswith(prefix) and name.endswith("loss") and not math.isfinite(value):
                self.stop_not_finite(name, f"the evaluation after step {self.state.global_step}")
        return metrics

    def save_model(self, *arguments: Any, **named: Any) -> None:
        """As upstream's. Raises NotFinite, before a file is written, where a weight is NaN or infinite."""
        found = [self._bad_weight()]
        if (
            self.is_fsdp_enabled or self.is_deepspeed_enabled
        ):  # elsewhere each rank has them all, and may save alone
            found = gather_object(found)
        names = [name for name in found if name is not None]
        if names:
            self.stop_not_finite(
                f"weight {names[0]}", f"the save after step {self.state.global_step}", named=True
            )
        super().save_model(*arguments, **named)

    def _bad_anywhere(self, flags: Mapping[str, Tensor]) -> list[str]:
        """Names whose flag is set on any rank. Every rank comes here with the same names."""
        if not flags:
            return []
        packed = torch.stack([flag.float().to(self.accelerator.device) for flag in flags.values()])
        summed = self.accelerator.reduce(packed, reduction="sum").tolist()
        return [name for name, count in zip(flags, summed, strict=True) if count]

    def _loss_scale_may_fall(self) -> bool:
        """Whether float16 loss scaling explains an infinite gradient: it starts high and finds its level that way."""
        if self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            return bool(self.deepspeed.fp16_enabled())  # which raises by itself at its smallest scale
        scaler = self.accelerator.scaler
        return scaler is not None and scaler.is_enabled() and scaler.get_scale() >= LOWEST_SCALE

    def stop_not_finite(self, what: str, when: str, *, named: bool = False) -> NoReturn:
        """Raises NotFinite with what is known of the cause. Every rank comes here together, unless `named`."""
        # Each rank may hold another part of the model; all say the same.
        causes = [] if named else gather_object([self._cause()])
        weight = next((one for one, _ in causes if one is not None), None)
        gradient = next((one for _, one in causes if one is not None), None)
        if weight is not None:
            where = f"; the first weight that is not finite is {weight}"
        elif gradient is not None:
            where = f"; all weights are finite, the first gradient that is not is that of {gradient}"
        else:
            where = "" if named else "; all weights are finite"
        raise NotFinite(f"{when}: {what} {_is_not(what)} finite{where}. {self._what_is_kept()}")

    def _what_is_kept(self) -> str:
        last = get_last_checkpoint(str(self.args.output_dir)) if _is_folder(self.args.output_dir) else None
        if last is None:
            return (
                "Nothing was saved. Try a lower learning rate, or look at the data and rewards of this step"
            )
        return (
            f"Nothing was saved over the last checkpoint, {last}; resume from it with a lower learning rate, or look "
            "at the data and rewards of this step"
        )

    def _cause(self) -> tuple[str | None, str | None]:
        """The first weight on this rank that is not finite, or else the first gradient."""
        weight = self._bad_weight()
        if weight is not None:
            return weight, None
        gradients = ((name, p.grad) for name, p in self._named_parameters() if p.grad is not None)
        return None, first_not_finite(gradients)

    def _bad_weight(self) -> str | None:
        # Under ZeRO-3 a rank's part of a parameter lies beside the empty parameter.
        return first_not_finite(
            (name, vars(p).get("ds_tensor", p.data)) for name, p in self._named_parameters()
        )

    def _named_parameters(self) -> Iterable[tuple[str, Tensor]]:
        return self.accelerator.unwrap_model(self.model).named_parameters()

    def check_sampled(self, logprobs: Iterable[Iterable[float]]) -> None:
        """Raises NotFinite, on every rank, where the sampler gave a token a log-prob that is not finite: NaN logits
        are sampled from without an error. Every rank comes here together."""
        bad = any(not math.isfinite(value) for row in logprobs for value in row)
        if any(gather_object([bad])):
            self.stop_not_finite(
                "the sampler's log-probs", f"the rollout of step {self.state.global_step + 1}"
            )


def first_not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """The first name whose floating tensor holds a NaN or an infinity. One wait a device, no copy of a tensor."""
    names: list[str] = []
    flags: list[Tensor] = []
    for name, tensor in tensors:
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        # A byte a number is quantised storage, whose scales are tensors of their own.
        if not local.is_floating_point() or local.element_size() < 2 or not local.numel() or local.is_meta:
            continue
        low, high = torch.aminmax(local.detach())  # NaN passes through both
        names.append(name)
        flags.append((low.isfinite() & high.isfinite()).logical_not())
    if not flags:
        return None
    home = flags[0].device
    found = torch.stack([flag.to(home) for flag in flags]).tolist()
    return next((name for name, bad in zip(names, found, strict=True) if bad), None)


def reward_fault(groups: Groups, streams: Mapping[str, Tensor], names: Sequence[str]) -> str | None:
    """The reward or advantage that is not finite in float32, where standard deviations square it; None: all are.

    NaN means unjudged where a function gave it, but not where only the weighted sum has become one.
    """
    per_function, total = groups.rewards_per_function, groups.rewards
    undecided = total.isnan() & ~per_function.isnan().all(dim=2)  # inf - inf
    squares = total.nan_to_num(posinf=torch.inf, neginf=-torch.inf).square().sum()
    flags = [*per_function.isinf().flatten(0, 1).any(dim=0), total.isinf().any() | undecided.any()]
    flags += [squares.isfinite().logical_not()]
    flags += [values.isfinite().all().logical_not() for values in streams.values()]
    said = [f"reward {name}" for name in names]
    said += [
        "the weighted sum of rewards",
        "the square of the weighted rewards, which a standard deviation takes,",
    ]
    said += [name if name == "advantages" else f"the advantages' part {name}" for name in streams]
    found = torch.stack(flags).tolist()
    return next((name for name, bad in zip(said, found, strict=True) if bad), None)


def _as_plain(norm: Any, device: torch.device) -> Tensor:
    if isinstance(norm, DTensor):
        return norm.full_tensor()
    return norm if isinstance(norm, Tensor) else torch.tensor(float(norm), device=device)


def _is_not(what: str) -> str:
    return "are not" if what.endswith("s") and not what.endswith("loss") else "is not"


def _is_folder(path: Any) -> bool:
    return path is not None and Path(str(path)).is_dir()
