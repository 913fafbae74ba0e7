"""Feeds the run folder and the progress view from a transformers trainer's log, in place of its own printers."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from posttrain.observe.basis import PROBLEMS
from posttrain.observe.progress import ProgressView
from posttrain.observe.watch import Watch
from posttrain.observe.writer import RunWriter, read_evaluation, read_samples
from posttrain.process.phases import PHASES

_RATES = ("_runtime", "_per_second", "num_tokens", "epoch")
_SHOWN = (
    *("loss", "accuracy", "reward", "completions/mean_length", "completions/clipped_ratio"),
    *("tools/call_frequency", "tools/failure_frequency"),
)
_PACED = 20  # logs over which tokens per second are averaged


class RunCallback(TrainerCallback):
    """Every `on_log` becomes a line of metrics.jsonl and a redraw; only the main process does anything.

    It opens the view; whoever made it closes it.

    writer       None on every rank but the main one
    completions  called every `completions_every` steps for the columns of the last rollout
                 (`RunWriter.write_completions`); None from it, or no function, writes nothing
    """

    def __init__(
        self,
        writer: RunWriter | None,
        view: ProgressView,
        *,
        completions: Callable[[], Mapping[str, Sequence[Any]] | None] | None = None,
        completions_every: int = 10,
    ) -> None:
        self.writer = writer
        self.view = view
        self._completions = completions
        self._completions_every = completions_every
        self._tokens: deque[tuple[float, float]] = deque(maxlen=_PACED)  # (time, tokens so far)
        self._watch = Watch()
        self._micro_batch = self._measured = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._tokens.clear()
        if state.global_step == 0:  # a resumed run's first log is the count to measure from
            self._tokens.append((time.monotonic(), 0.0))
        if self.writer is not None:
            self.writer.start(state.global_step, total=state.max_steps)
            self.view.start_clock()

    # What a trainer that says nothing itself is doing (trainers/reporting/announced.py says more)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._micro_batch = 1
        PHASES.say("forward and backward", 1, args.gradient_accumulation_steps)

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._micro_batch += 1
        PHASES.say("forward and backward", self._micro_batch, args.gradient_accumulation_steps)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        PHASES.say("optimizer step")

    def on_prediction_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        eval_dataloader: Any = None,
        **_: Any,
    ) -> None:
        self._measured += 1
        PHASES.say("measuring: batch", self._measured, length_of(eval_dataloader))

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._measured = 0

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if self.writer is None or not logs:
            return
        metrics = {name: value for name, value in logs.items() if name != "epoch"}
        if "train_runtime" in metrics:  # transformers' closing line: the whole run, not a step
            self.writer.event("totals", step=state.global_step, **metrics)
            return
        if metrics.get("num_tokens") is not None:
            speed = self._speed(float(metrics["num_tokens"]))
            metrics |= {} if speed is None else {"tokens_per_second": speed}
        self.writer.log(state.global_step, metrics, epoch=state.epoch)
        self.view.update(state.global_step, state.max_steps, metrics)
        for note in self._watch.see({"step": state.global_step, **metrics}):
            self.view.message(note)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        PHASES.say("reading rows")
        due = state.global_step % self._completions_every == 0 or state.global_step in (1, state.max_steps)
        if self._completions is None or not due or self.writer is None:
            return
        columns = self._completions()
        if columns:
            self.writer.write_completions(state.global_step, columns)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self.writer is not None:
            self.writer.finish(state.global_step)

    def _speed(self, tokens: float) -> float | None:
        """Tokens per second since the oldest of the last logs that counted any."""
        if self._tokens and tokens < self._tokens[-1][1]:
            self._tokens.clear()  # a trainer that counts from zero after a resume
        self._tokens.append((time.monotonic(), tokens))
        (began, first), (now, last) = self._tokens[0], self._tokens[-1]
        return (last - first) / (now - began) if now > began and last > first else None


def length_of(dataloader: Any) -> int | None:
    """Batches of a data loader; None where it is a stream that does not know."""
    try:
        return len(dataloader)
    except TypeError:
        return None


def rows_of(dataloader: Any) -> int | None:
    """Rows of a data loader's set; None where there is none, or it is a stream."""
    return None if dataloader is None else length_of(dataloader.dataset)


def attach(trainer: Any, callback: RunCallback) -> None:
    """Adds the callback to a trainer and takes transformers' own printers and bars away."""
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(callback)


class HeldOut(TrainerCallback):
    """Keeps the held-out measurements of a run: the first as `before`, the latest as `after`.

    columns  called right after an evaluation for the responses it made (`RunWriter.write_evaluation`), or None
    """

    def __init__(
        self, writer: RunWriter | None, columns: Callable[[], Mapping[str, Sequence[Any]] | None]
    ) -> None:
        self._writer = writer
        self._columns = columns
        self.results: dict[str, dict[str, float]] = {}
        self.samples: dict[str, Mapping[str, Sequence[Any]]] = {}
        self.last_step = -1

    def take_up(self, run_dir: str | Path) -> None:
        """What a run that is resumed measured before its first step."""
        measured, columns = read_evaluation(run_dir).get("before"), read_samples(run_dir, "before")
        if measured is not None:
            self.results["before"] = measured
        if columns is not None:
            self.samples["before"] = columns

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, float] | None = None,
        eval_dataloader: Any = None,
        **_: Any,
    ) -> None:
        self.last_step = state.global_step
        when = "after" if state.global_step > 0 else "before"
        kept = {
            name.removeprefix("eval_"): float(value)
            for name, value in (metrics or {}).items()
            if isinstance(value, int | float) and not name.endswith(_RATES)
        }
        if (count := rows_of(eval_dataloader)) is not None:
            kept[PROBLEMS] = float(count)
        columns = self._columns()
        self.results[when] = kept
        if columns is not None:
            self.samples[when] = columns
        if self._writer is not None:
            self._writer.write_evaluation(when, kept, columns)

    def show(self, console: Console) -> None:
        """The table before and after, and a few responses side by side."""
        if not self.results:
            return
        whens = [when for when in ("before", "after") if when in self.results]
        names = [name for name in self.results[whens[-1]] if name in _SHOWN or name.startswith("rewards/")]
        table = Table("held out", *whens, box=SIMPLE_HEAD)
        for name in names:
            if not name.endswith("/std"):
                table.add_row(name, *(f"{self.results[when].get(name, float('nan')):.3f}" for when in whens))
        console.print(table)
        if len(self.samples) == 2 and all("completion" in columns for columns in self.samples.values()):
            self._show_samples(console)

    def _show_samples(self, console: Console, count: int = 6) -> None:
        before, after = self.samples["before"], self.samples["after"]
        said = (
            ("transcript" if "transcript" in after else "completion")
            if "transcript" in before
            else "completion"
        )
        heads = {"prompt": before["prompt"], "before": before[said], "after": after[said]}
        if any(
            answer is not None for answer in after["answer"]
        ):  # some tasks have no answer that could be given
            heads["answer"] = ["" if answer is None else answer for answer in after["answer"]]
        table = Table(*heads, box=SIMPLE_HEAD)
        rows = list(zip(*heads.values(), strict=True))
        changed = [row for row in rows if row[1] != row[2]] or rows
        for row in changed[:count]:
            table.add_row(*(escape(_short(value)) for value in row))
        console.print(table)


def _short(value: Any, limit: int = 60) -> str:
    text = value[-1]["content"] if isinstance(value, list) else str(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
