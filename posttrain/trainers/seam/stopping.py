"""A run that is asked to stop ends after the step in hand, with a checkpoint; asked again, at once."""

from __future__ import annotations

import signal
import sys
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from posttrain.process.stop_requests import REQUESTS


class StopOnSignal(TrainerCallback):
    """Turns the first request (stop_requests.py lists them) into "save, then stop", agreed on by all ranks."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[signal.Signals, Any] = {}

    def _tell(self, name: str) -> None:
        self.asked = True
        if PartialState().is_main_process:
            print(
                f"\n{name}: stopping after this step with a checkpoint (again: at once)",
                file=sys.stderr,
                flush=True,
            )

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if not self.asked:
            REQUESTS.reason = None
        REQUESTS.tell = self._tell
        self._before = REQUESTS.listen()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self.agreed():
            control.should_save = True
            control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        REQUESTS.tell = None
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
