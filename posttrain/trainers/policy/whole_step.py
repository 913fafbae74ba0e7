"""The optimizer step as a whole: what is counted over its micro-batches and ranks, before the first and after the last.

The loss of a micro-batch (policy.py) divides by these counts, so that splitting a batch moves nothing.
"""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false
# A mixin: what it reads is PolicyTrainer's.

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from posttrain.objectives.base import StepTotals, TokenBatch
from posttrain.objectives.step import kept_mask
from posttrain.observe.recorder import record_step
from posttrain.observe.signal import SignalCounts, account_objective
from posttrain.trainers.forward.padded import loss_mask


@dataclass
class StepWindow:
    """What one optimizer step knows: counts and statistics over all its micro-batches and ranks.

    batches  this rank's micro-batches, without gradient, as far as the loss has seen them
    rows     for each of them the places of its responses in the whole rollout
    before   the objective's running statistics when the step began, where the step is recorded
    """

    totals: StepTotals
    step: Mapping[str, Any]
    before: dict[str, Any] | None
    batches: list[TokenBatch] = field(default_factory=list)
    rows: list[Tensor] = field(default_factory=list)


class WholeStep:
    """Opens and closes a `StepWindow` around each optimizer step."""

    def _all_sum(self, values: Tensor) -> Tensor:
        return torch.as_tensor(self.accelerator.reduce(values, reduction="sum"))

    def _open_window(self, model: Any, first: TokenBatch) -> StepWindow:
        """Counts and statistics over all micro-batches and ranks of the optimizer step that begins now.

        Only an objective that observes the step costs a second forward pass, and only where there is more than one
        micro-batch.
        """
        per_rollout = self.args.steps_per_generation
        accumulation = self.current_gradient_accumulation_steps
        slices = [self._buffered_inputs[(self._step + i) % per_rollout] for i in range(accumulation)]
        masks = [loss_mask(inputs) for inputs in slices]
        objective = self.objective
        step: dict[str, Any] = {
            "learning_rate": self._get_learning_rate(),
            "peak_learning_rate": self.args.learning_rate,
        }
        if objective.observes_step:
            batches = [without_gradient(first)]
            with torch.no_grad():
                batches += [self._forward(model, inputs)[0] for inputs in slices[1:]]
                batches = [objective.prepare(replace(b, step=step, index=i)) for i, b in enumerate(batches)]
                step |= objective.observe_step(batches, self._all_sum)
            batches = [replace(batch, step=step) for batch in batches]
            masks = [kept_mask(objective, batch) for batch in batches]
        counts = first.logprobs.new_tensor([0.0, sum(mask.size(0) for mask in masks)])
        counts[0] = sum(mask.sum() for mask in masks)
        counts = self._all_sum(counts)
        recorded = self.state.global_step + 1 in self.args.record_steps
        before = copy.deepcopy(objective.state_dict()) if recorded else None
        return StepWindow(StepTotals(counts[0], counts[1], self.max_completion_length), step, before)

    def _close_window(self, window: StepWindow) -> None:
        finished = self.objective.finish_step(window.batches, self._all_sum)
        values = self.loss_metrics.flush() | {f"{self.method}/{k}": float(v) for k, v in finished.items()}
        for name, value in values.items():
            self._metrics["train"][name].append(value)
        if self._entropy_bonus_enabled:
            self._metrics["train"]["entropy_coef"].append(self.entropy_coef)
        if window.before is not None:
            self._record(window)
        self._window = None

    def _record(self, window: StepWindow) -> None:
        """Saves the step for `posttrain replay`, beside the checkpoints."""
        record_step(
            Path(self.args.output_dir).parent / "records",
            self.state.global_step + 1,
            window.batches,
            window.totals,
            self.method,
            dataclasses.asdict(self.objective),
            groups=self._groups,
            rows=window.rows if self._groups is not None else None,
            state=window.before,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
        )

    def _account(
        self, batch: TokenBatch, inputs: Mapping[str, Any], keep: Tensor | None, weights: Tensor | None
    ) -> SignalCounts:
        """Why each generated token of this micro-batch carries gradient or not."""
        completion = inputs["completion_mask"]
        tool = inputs.get("tool_mask")
        return account_objective(
            self.objective,
            batch,
            generated=inputs["generated_mask"],
            keep=keep,
            unjudged=inputs["unjudged"].unsqueeze(1),
            equal_rewards=inputs["equal_rewards"].unsqueeze(1),
            truncated=(completion.sum(1, keepdim=True) == 0),
            tool=None if tool is None else (tool == 0) & (completion == 1),
            importance=weights,
        )


def without_gradient(batch: TokenBatch) -> TokenBatch:
    return replace(batch, logprobs=batch.logprobs.detach())
