"""The live view, metrics.jsonl and report.html of a recipe's run, for a trainer that is built in Python."""

from __future__ import annotations

import atexit
import dataclasses
from collections.abc import Mapping
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from posttrain.observe.progress import ProgressView
from posttrain.observe.run_page import write_report
from posttrain.observe.writer import EVALUATION, METRICS, RunWriter
from posttrain.trainers.reporting.callbacks import HeldOut, RunCallback
from posttrain.trainers.reporting.rollout_columns import held_out_rollouts, last_rollout


class RunReport(RunCallback):
    """A callback that keeps the run as a recipe's run is kept.

        trainer = BAPOTrainer(..., callbacks=[RunReport("runs/mine")])
        trainer.train()                              # live view; runs/mine/metrics.jsonl, completions/, report.html

    Any of this package's trainers takes it like any callback, also by `add_callback`. Another `transformers.Trainer`
    takes it through `RunReport("runs/mine").attach(trainer)`: added as a plain callback there, it writes the files
    and the page and leaves the screen to that trainer's own bar. Only the main process writes and prints.

    run_dir            where metrics.jsonl, completions/, evaluation/ and report.html go. A run that begins anew in a
                       folder takes the place of the one before, whose metrics become metrics.previous.jsonl; one that
                       is resumed goes on in it. Every step is kept, whatever the trainer's logging_steps
    settings           what else the page is to say, in a recipe's sections: {"data": {"name": "gsm8k"}}
    completions_every  steps between two stored rollouts, for trainers that have rollouts
    """

    def __init__(
        self,
        run_dir: str | Path,
        *,
        settings: Mapping[str, Any] | None = None,
        completions_every: int = 10,
    ) -> None:
        self.run_dir = Path(run_dir)
        for place in (self.run_dir, *self.run_dir.parents):
            if place.exists() and not place.is_dir():
                raise ValueError(f"RunReport: {place} is a file, so {self.run_dir} cannot be a run's folder")
        super().__init__(
            None, ProgressView(self.run_dir.name, enabled=False), completions_every=completions_every
        )
        self.settings = dict(settings or {})
        self._trainer: Any = None
        self._held_out: HeldOut | None = None
        self._finished = False

    def attach(self, trainer: Any) -> RunReport:
        """Adds it to a trainer whose class knows nothing of it, and takes transformers' own printers away."""
        self.bind(trainer)
        trainer.add_callback(self)
        atexit.register(self.close)  # a run that ends in an error must give the cursor back
        return self

    def bind(self, trainer: Any) -> None:
        """Knows the trainer from now on: its rollouts can be kept, and the screen is this callback's."""
        self._trainer = trainer
        self._completions = partial(last_rollout, trainer)
        for printer in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(printer)

    def close(self) -> None:
        """Ends the view, however the run ended."""
        self.view.close()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        self._finished = False
        metrics = self.run_dir / METRICS
        if (
            self.writer is None
            and state.is_world_process_zero
            and state.global_step == 0
            and metrics.exists()
        ):
            metrics.replace(metrics.with_name("metrics.previous.jsonl"))
        self._open(args, state, more)
        super().on_train_begin(args, state, control, **more)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        control.should_log = True  # TRL's default logs every tenth step
        super().on_step_end(args, state, control, **more)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        super().on_evaluate(args, state, control, **more)
        self._open(args, state, more)
        if self._held_out is not None:
            self._held_out.on_evaluate(args, state, control, **more)
        if self._finished and self.writer is not None:  # measured again after the last step
            write_report(self.run_dir)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        super().on_train_end(args, state, control, **more)
        self.close()
        self.view = ProgressView(self.run_dir.name, enabled=False)  # a later evaluation's log draws nothing
        self._finished = True
        if self.writer is not None:
            path = write_report(self.run_dir)
            Console().print(f"report: {path}", markup=False, highlight=False, soft_wrap=True)

    def _open(self, args: TrainingArguments, state: TrainerState, more: Mapping[str, Any]) -> None:
        """Once, as soon as it is known whether this is the main process and where the run begins."""
        if self.writer is not None or not state.is_world_process_zero:
            return
        self.writer = RunWriter(self.run_dir)
        if state.global_step == 0:
            for file in (self.run_dir / EVALUATION).glob("*"):
                file.unlink()  # another run's: its numbers must not stand beside this one's
        self.writer.write_recipe(
            describe_run(self._trainer, args, more.get("model"), self.run_dir, self.settings)
        )
        self.writer.write_environment(seed=args.seed, world_size=args.world_size)
        self.view = ProgressView(self.run_dir.name, enabled=self._trainer is not None)
        columns = partial(held_out_rollouts, self._trainer) if self._trainer is not None else _nothing
        self._held_out = HeldOut(self.writer, columns)
        if state.global_step > 0:
            self._held_out.take_up(self.run_dir)


def describe_run(
    trainer: Any, args: TrainingArguments, model: Any, run_dir: Path, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """What is known of a Python run, in a recipe's sections; `settings` win. Of the arguments those that were set."""
    known = {} if trainer is None else vars(trainer)
    method, learner = known.get("method"), known.get("objective", known.get("method"))
    objective: dict[str, Any] = {}
    if dataclasses.is_dataclass(learner) and not isinstance(learner, type):
        objective = dataclasses.asdict(learner)
        method = type(learner).__module__.rpartition(".")[2]
    kind = type(trainer).__name__ if trainer is not None else "a transformers trainer"
    name = None if model is None else vars(model).get("name_or_path") or model_name(model)
    found: dict[str, Any] = {
        "method": method if isinstance(method, str) else kind,
        "model": {"path": name} if name else {},
        "data": {},
        "train": {k: v for k, v in changed_arguments(args).items() if k not in objective},
        "objective": {key: plain(value) for key, value in objective.items()},
        "output": {"name": run_dir.name},
    }
    return {key: value for key, value in {**found, **settings}.items() if value}


def model_name(model: Any) -> str:
    """Where a pretrained model came from; "" for one that is made in memory or is no model of transformers."""
    config = vars(model).get("config")
    return "" if config is None else str(vars(config).get("_name_or_path") or "")


def changed_arguments(args: Any) -> dict[str, Any]:
    """The fields of a config whose value is another than the class's default, in plain values; no token or key."""
    found = {}
    for field in dataclasses.fields(args):
        value = vars(args).get(field.name)
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        secret = field.name.endswith(("_token", "_key"))
        if field.init and not secret and value is not None and value != default:
            found[field.name] = plain(value)
    return found


def plain(value: Any) -> Any:
    """As YAML holds it: numbers, text, lists and mappings of these; anything else as text."""
    if isinstance(value, Enum):  # one of texts is text to YAML only by its value
        return value.value
    if isinstance(value, bool | int | float | str) or value is None:
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(one) for one in value]
    return str(value)


def _nothing() -> None:
    """A trainer that is not known has no responses to keep."""


def reports_of(callbacks: list[TrainerCallback]) -> list[RunReport]:
    return [callback for callback in callbacks if isinstance(callback, RunReport)]
