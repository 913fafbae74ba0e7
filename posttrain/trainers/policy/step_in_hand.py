"""The optimizer step a trainer is in: opened before its first micro-batch, closed after its last.

What happens in between, and in which order, is objectives/step.py's; here are the trainer's micro-batches, its ranks,
its log and the record of a step for `posttrain replay`.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor

from posttrain.objectives.base import Groups, Objective, TokenBatch
from posttrain.objectives.step import OptimizerStep
from posttrain.observe.recorder import record_step
from posttrain.trainers.seam.finite import StepNotes


class StepHost(Protocol):
    """What a step reads of its trainer. The names are TRL's and transformers', but for `step_notes`."""

    accelerator: Accelerator
    args: Any
    state: Any
    max_completion_length: int
    current_gradient_accumulation_steps: int
    _step: int
    _buffered_inputs: Any
    _metrics: Any

    @property
    def step_notes(self) -> StepNotes: ...

    def _get_learning_rate(self) -> float: ...


class Flushing(Protocol):
    def flush(self) -> dict[str, float]: ...


class StepInHand:
    """One trainer's optimizer steps, one after the other.

    metrics  what the micro-batches add up to; flushed into the trainer's log when the step closes
    groups   rewards of the rollout the step is part of, for its record; whoever scores a rollout sets it
    thrown_tokens  response tokens that were sampled for the rollout and are not in it, on one rank for all; its first
                   step accounts for them
    """

    def __init__(self, host: StepHost, objective: Objective, method: str, metrics: Flushing) -> None:
        self.host = host
        self.objective = objective
        self.method = method
        self.metrics = metrics
        self.groups: Groups | None = None
        self.thrown_tokens = 0
        self._open: OptimizerStep | None = None
        self._rows: list[Tensor] = []  # for each micro-batch the places of its responses in the whole rollout
        self._before: dict[str, Any] | None = (
            None  # the objective's statistics at the start of a recorded step
        )

    @property
    def position(self) -> int:
        """Which micro-batch of its optimizer step the current one is, from 0."""
        return self.host._step % self.host.current_gradient_accumulation_steps

    def slices(self) -> list[dict[str, Any]]:
        """This rank's micro-batches of the optimizer step that begins now, as TRL buffers them."""
        host = self.host
        per_rollout = host.args.steps_per_generation
        return [
            host._buffered_inputs[(host._step + i) % per_rollout]
            for i in range(host.current_gradient_accumulation_steps)
        ]

    def take(self, groups: Groups, output: dict[str, Any]) -> None:
        """A rollout that was scored; output: this rank's share of it, as TRL will buffer it."""
        self.groups = groups

    def all_sum(self, values: Tensor) -> Tensor:
        return torch.as_tensor(self.host.accelerator.reduce(values, reduction="sum"))

    def open(self, masks: Sequence[Tensor], batches: Callable[[], Sequence[TokenBatch]]) -> OptimizerStep:
        """Before the first micro-batch; `masks` and `batches` as `OptimizerStep` takes them."""
        host = self.host
        self._rows = []
        recorded = host.state.global_step + 1 in host.args.record_steps
        self._before = copy.deepcopy(self.objective.state_dict()) if recorded else None
        known = {
            "learning_rate": host._get_learning_rate(),
            "peak_learning_rate": host.args.learning_rate,
        }
        self._open = OptimizerStep(
            self.objective,
            masks,
            batches,
            max_completion_length=host.max_completion_length,
            known=known,
            all_sum=self.all_sum,
        )
        return self._open

    def loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """The loss of the next micro-batch of TRL's buffer: this rank's share of the step's loss times the ranks."""
        raise NotImplementedError  # every kind of method scores its own way

    def current(self) -> OptimizerStep:
        if self._open is None:
            raise RuntimeError(
                f"{type(self.host).__name__}: a micro-batch arrived before the first one of its optimizer step"
            )
        return self._open

    def close(self) -> None:
        """After the loss of the last micro-batch: statistics move, numbers are logged, the step is recorded."""
        step = self.current()
        finished = step.finish()
        values = self.metrics.flush() | {f"{self.method}/{k}": float(v) for k, v in finished.items()}
        for name, value in values.items():
            self.log(name, value)
        if self._before is not None:
            self._record(step, self._before)
        self._open = None

    def log(self, name: str, value: float) -> None:
        self.host._metrics["train"][name].append(value)

    def _record(self, step: OptimizerStep, before: dict[str, Any]) -> None:
        """Saves the step for `posttrain replay`, beside the checkpoints."""
        host = self.host
        record_step(
            Path(host.args.output_dir).parent / "records",
            host.state.global_step + 1,
            step.seen,
            step.totals,
            self.method,
            dataclasses.asdict(self.objective),  # type: ignore[call-overload]  # every objective is a dataclass
            groups=self.groups,
            rows=self._rows if self.groups is not None else None,
            state=before,
            rank=host.accelerator.process_index,
            world_size=host.accelerator.num_processes,
        )
