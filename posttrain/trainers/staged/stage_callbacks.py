"""Callbacks that live through a run of several trainers and see one run: steps go on, beginning and end come once."""

from __future__ import annotations

import copy
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from posttrain.trainers.seam.stopping import StopOnSignal

_PASSED_ON = (
    "on_step_begin",
    "on_substep_end",
    "on_pre_optimizer_step",
    "on_optimizer_step",
    "on_step_end",
    "on_log",
    "on_save",
    "on_evaluate",
    "on_prediction_step",
)


class InRun:
    """One stage's place in the run: `before` counts the steps of the stages before it and knows the total."""

    def __init__(self, before: TrainerState, *, first: bool, last: bool) -> None:
        self.steps_before = before.global_step
        self.total = before.max_steps
        self.first = first
        self.last = last

    def around(self, callback: TrainerCallback) -> TrainerCallback:
        # A class of its own for each: transformers warns of two callbacks of one class.
        kind = type(f"{type(callback).__name__}InRun", (_Around,), {})
        return kind(callback, self)

    def seen(self, state: TrainerState) -> TrainerState:
        """The stage's state as the run's."""
        shifted = copy.copy(state)
        shifted.global_step = state.global_step + self.steps_before
        shifted.max_steps = max(self.total, self.steps_before + state.max_steps)
        return shifted


class _Around(TrainerCallback):
    """Calls another callback with the run's step numbers."""

    def __init__(self, inner: TrainerCallback, run: InRun) -> None:
        self.inner, self.run = inner, run
        # Signals are caught while a stage trains; between stages a Ctrl-C may end the run at once: samples are on disk.
        self.each_stage = isinstance(inner, StopOnSignal)
        for event in _PASSED_ON:
            setattr(self, event, self._passing(event))

    def _passing(self, event: str) -> Any:
        def pass_on(
            args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
        ) -> Any:
            return getattr(self.inner, event)(args, self.run.seen(state), control, **more)

        return pass_on

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> Any:
        if self.run.first or self.each_stage:
            return self.inner.on_train_begin(args, self.run.seen(state), control, **more)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> Any:
        if self.run.last or self.each_stage or state.global_step < state.max_steps:
            return self.inner.on_train_end(args, self.run.seen(state), control, **more)
