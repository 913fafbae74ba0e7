"""Benchmarks while training: the recipe's `evaluation` section, run on the weights as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from posttrain.evaluation.in_training import evaluate_checkpoint
from posttrain.observe.progress import ProgressView
from posttrain.observe.writer import RunWriter
from posttrain.process.phases import PHASES
from posttrain.recipe.sections import EvaluationSection


class AtCheckpoints(TrainerCallback):
    """Evaluates when the section says so; the main process generates while the others wait.

    Training's random state is put back afterwards, so that a run with benchmarks trains like one without. Raises
    ValueError where no process holds the whole model (ZeRO-3, FSDP): evaluate the saved checkpoints instead.
    """

    def __init__(
        self,
        trainer: Any,
        settings: EvaluationSection,
        run_dir: Path,
        writer: RunWriter | None,
        view: ProgressView,
    ) -> None:
        kind = trainer.accelerator.distributed_type
        if kind in (DistributedType.FSDP, DistributedType.DEEPSPEED):
            raise ValueError(
                f"evaluation: under {kind.value} no process holds the whole model; drop the section and run "
                "`posttrain eval generate` on the saved checkpoints"
            )
        self._trainer, self._settings, self._run_dir = trainer, settings, run_dir
        self._writer, self._view = writer, view
        self._done = -1

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if state.global_step == 0 and self._settings.is_due(0):
            self._evaluate(0)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self._settings.is_due(state.global_step):
            self._evaluate(state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if state.global_step >= state.max_steps and self._done != state.global_step:
            self._evaluate(state.global_step)

    def _evaluate(self, step: int) -> None:
        self._done = step
        if self._writer is not None:
            model = self._trainer.accelerator.unwrap_model(self._trainer.model)
            training = model.training
            model.eval()
            try:
                with torch.random.fork_rng(), PHASES.within("benchmarks"):
                    values = evaluate_checkpoint(
                        model,
                        self._trainer.processing_class,
                        self._settings,
                        self._run_dir,
                        step=step,
                        progress=lambda name, done, of: PHASES.say(f"benchmark {name}", done, of),
                    )
            finally:
                model.train(training)
            if step > 0:
                self._writer.log(step, values)
            else:
                self._writer.event("benchmarks", step=0, **values)
            shown = ", ".join(f"{name} {value:.3f}" for name, value in values.items() if "accuracy" in name)
            self._view.message(f"step {step}: {shown}")
        self._trainer.accelerator.wait_for_everyone()
