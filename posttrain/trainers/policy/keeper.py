"""What a policy trainer carries from step to step beside its weights: so that a resume continues exactly.

Written into each rank's part of a checkpoint by seam/resume.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from accelerate import Accelerator
from torch import Tensor
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from posttrain.objectives.base import Objective
from posttrain.trainers.engines.rollouts import Rollouts


class KeptHost(Protocol):
    """What is kept of the trainer itself, and what saves it. The names are TRL's and transformers'."""

    args: Any
    accelerator: Accelerator
    model: Any
    state: Any
    num_iterations: int
    _step: int
    _buffered_inputs: Any

    def _save_checkpoint(self, model: Any, trial: Any) -> None: ...


class Keeper:
    """The place in the rollout buffer, the buffer, the objective's running statistics, the rounds made ahead."""

    def __init__(self, host: KeptHost, objective: Objective, rollouts: Rollouts) -> None:
        self.host = host
        self.objective = objective
        self.rollouts = rollouts

    def state(self) -> dict[str, Any]:
        return {
            "step": self.host._step,
            "buffer": self.host._buffered_inputs,
            "objective": self.objective.state_dict(),
            "shape": self._shape(),
            "engine": self.rollouts.state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Raises ValueError where the buffer was cut for other settings."""
        shape = self._shape()
        if state["shape"] != shape:
            raise ValueError(
                f"the checkpoint was written with steps_per_generation, num_iterations = {state['shape']}, this run "
                f"has {shape}: its rollout buffer does not fit. Resume with the same values."
            )
        host, device = self.host, self.host.accelerator.device
        host._step = state["step"]
        if state["buffer"] is not None:
            host._buffered_inputs = [
                {k: v.to(device) if isinstance(v, Tensor) else v for k, v in part.items()}
                for part in state["buffer"]
            ]
        self.objective.load_state_dict(state["objective"])
        self.rollouts.load_state(state["engine"])

    def _shape(self) -> list[int]:
        return [self.host.args.steps_per_generation, self.host.num_iterations]

    def save_before_stopping(self) -> str:
        """Saves the state after the last whole step, and says where. A rollout begins a step and draws from no
        generator, so there is nothing of the interrupted step in it."""
        host, step = self.host, self.host.state.global_step
        if step == 0:
            return "No step was complete yet, so there is nothing to resume: mend it and start again."
        folder = Path(host.args.output_dir or ".") / f"{PREFIX_CHECKPOINT_DIR}-{step}"
        if not folder.is_dir():
            host._save_checkpoint(host.model, trial=None)
        return f"The run is saved as of step {step} in {folder}; --resume continues it from there."
