"""Ctrl-C ends a run after the step in hand, with a checkpoint; a second Ctrl-C ends it at once."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class StopOnSignal(TrainerCallback):
    """Turns the first SIGINT or SIGTERM into "save, then stop", agreed on by all ranks."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.asked:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.asked = True
        if PartialState().is_main_process:
            print(
                "\nstopping after this step with a checkpoint (again: at once)", file=sys.stderr, flush=True
            )

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if threading.current_thread() is threading.main_thread():
            self._before = {n: signal.signal(n, self._handle) for n in (signal.SIGINT, signal.SIGTERM)}

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self.agreed():
            control.should_save = True
            control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def agreed(self) -> bool:
        """Whether any rank was asked: the signal can reach the ranks a step apart. All ranks call it together."""
        state = PartialState()
        if state.num_processes == 1:
            return self.asked
        asked = torch.tensor(float(self.asked), device=state.device)
        anywhere = bool(reduce(asked, reduction="sum").item() > 0)  # type: ignore[union-attr]  # tensor in, tensor out
        if anywhere:  # not assigned as it is: a signal that came meanwhile waits for the next step
            self.asked = True
        return anywhere
