from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn
from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

from posttrain.observe.progress import ProgressView
from posttrain.observe.writer import RunWriter, completion_files, read_events, read_metrics
from posttrain.trainers.reporting import callbacks
from posttrain.trainers.reporting.callbacks import HeldOut, RunCallback, attach


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(1, 1)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (self.head(x) - labels).square().mean()}


def arguments(folder: Path, **changes: Any) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder / "out"), max_steps=4, logging_steps=1, report_to=[], save_strategy="no", use_cpu=True,
        **changes,
    )  # fmt: skip


def test_a_trainers_log_becomes_lines_and_one_quiet_view(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = io.StringIO()
    rows = [{"x": torch.tensor([float(i)]), "labels": torch.tensor([1.0])} for i in range(8)]
    callback = RunCallback(RunWriter(tmp_path), ProgressView(console=Console(file=out, width=200), every=2))
    trainer = Trainer(
        model=Model(),
        args=arguments(tmp_path, eval_strategy="steps", eval_steps=2),
        train_dataset=rows,
        eval_dataset=rows,
    )  # type: ignore[arg-type]  # a list serves as a dataset
    attach(trainer, callback)
    trainer.train()
    lines = read_metrics(tmp_path)
    assert [row["step"] for row in lines] == [1, 2, 3, 4]
    assert all(row["loss"] > 0 and row["epoch"] > 0 and row["grad_norm"] > 0 for row in lines)
    assert "eval_loss" in lines[1]
    assert "train_runtime" not in lines[-1]
    assert [event["event"] for event in read_events(tmp_path)] == ["start", "totals", "end"]
    assert [line.split()[1] for line in out.getvalue().splitlines()] == ["1/4", "2/4", "4/4"]
    captured = capfd.readouterr()
    assert "{'loss'" not in captured.out  # transformers' printer
    assert "%|" not in captured.err  # its progress bar


class Harness:
    """A callback driven by hand."""

    def __init__(self, folder: Path, step: int = 0, main: bool = True, **options: Any) -> None:
        self.out = io.StringIO()
        view = ProgressView(console=Console(file=self.out, width=300), every=1000)
        self.callback = RunCallback(RunWriter(folder) if main else None, view, **options)
        self.state = TrainerState(global_step=step, max_steps=100, is_world_process_zero=main)
        self.args = arguments(folder)
        self.control = TrainerControl()
        self.callback.on_train_begin(self.args, self.state, self.control)

    def log(self, step: int, **logs: Any) -> None:
        self.state.global_step = step
        self.callback.on_step_end(self.args, self.state, self.control)
        self.callback.on_log(self.args, self.state, self.control, logs=logs)

    def end(self) -> None:
        self.callback.on_train_end(self.args, self.state, self.control)


@pytest.fixture
def harness(tmp_path: Path) -> Callable[..., Harness]:
    return lambda **options: Harness(tmp_path, **options)


def test_tokens_a_second_follow_the_trainers_count(
    tmp_path: Path, harness: Callable[..., Harness], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [10.0]
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: now[0])
    run = harness()
    for step, (time_s, tokens) in enumerate(
        [(12.0, 600.0), (13.0, None), (14.0, 1000.0), (15.0, 5.0)], start=1
    ):
        now[0] = time_s
        run.log(step, num_tokens=tokens)
    speeds = [row.get("tokens_per_second") for row in read_metrics(tmp_path)]
    assert speeds == [300.0, None, 250.0, None]  # 600 / 2 s, 1000 / 4 s; a count that fell starts anew


def test_rollouts_are_stored_at_the_ends_and_in_between(
    tmp_path: Path, harness: Callable[..., Harness]
) -> None:
    run = harness(completions=lambda: {"prompt": ["p"], "completion": ["c"]}, completions_every=40)
    for step in range(1, 101):
        run.log(step, reward=1.0)
    assert list(completion_files(tmp_path)) == [1, 40, 80, 100]


def test_only_the_main_process_writes(tmp_path: Path, harness: Callable[..., Harness]) -> None:
    run = harness(main=False, completions=lambda: pytest.fail("asked for completions"))
    run.log(1, reward=1.0)
    run.end()
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_resumed_run_says_from_where(tmp_path: Path, harness: Callable[..., Harness]) -> None:
    harness(step=30).log(31, reward=1.0)
    (event,) = read_events(tmp_path)
    assert (event["event"], event["step"], event["total"]) == ("resume", 30, 100)


def test_bounds_that_never_moved_are_named_once(harness: Callable[..., Harness]) -> None:
    still = {"bapo/clip_low": 0.6, "bapo/clip_high": 1.2, "bapo/positive_share_before": 0.5}
    run = harness()
    for step in range(1, 60):
        run.log(step, **still)
    assert run.out.getvalue().count("Adaptive bounds inactive: bapo was a fixed clip (0.60, 1.20)") == 1
    moving = harness()
    for step in range(1, 60):
        moving.log(step, **{**still, "bapo/clip_high": 1.25 if step == 7 else 1.2})
    assert "inactive" not in moving.out.getvalue()


def test_the_last_table_of_a_resumed_run_shows_what_was_measured_at_its_start(tmp_path: Path) -> None:
    first = {"accuracy": 0.25, "reward": 0.3}
    columns = {"prompt": ["31>", "20>"], "completion": ["31", "02"], "answer": ["13", "02"]}
    RunWriter(tmp_path).write_evaluation("before", first, columns)
    better = {**columns, "completion": ["13", "02"]}
    held_out = HeldOut(None, lambda: better)
    held_out.take_up(tmp_path)
    held_out.on_evaluate(
        arguments(tmp_path), TrainerState(global_step=9), TrainerControl(), {"eval_accuracy": 0.75}
    )
    out = io.StringIO()
    held_out.show(Console(file=out, width=100))
    shown = [line.split() for line in out.getvalue().splitlines()]
    assert ["accuracy", "0.250", "0.750"] in shown
    assert ["31>", "31", "13", "13"] in shown


@pytest.mark.parametrize(("answers", "last"), [([None, None], []), (["13", None], ["answer"])])
def test_a_task_without_answers_has_no_column_of_them(
    tmp_path: Path, answers: list[str | None], last: list[str]
) -> None:
    said = iter((["one", "two"], ["three", "four"]))
    held_out = HeldOut(None, lambda: {"prompt": ["31>", "20>"], "completion": next(said), "answer": answers})
    for step in (0, 1):
        state = TrainerState(global_step=step)
        held_out.on_evaluate(arguments(tmp_path), state, TrainerControl(), {"eval_reward": 0.5})
    out = io.StringIO()
    held_out.show(Console(file=out, width=100))
    shown = [line.split() for line in out.getvalue().splitlines()]
    assert ["prompt", "before", "after", *last] in shown
    assert ["20>", "two", "four"] in shown
    assert "None" not in out.getvalue()


def test_a_run_resumed_where_nothing_was_measured_shows_its_end_alone(tmp_path: Path) -> None:
    held_out = HeldOut(None, lambda: None)
    held_out.take_up(tmp_path)
    assert held_out.results == {}
    assert held_out.samples == {}
