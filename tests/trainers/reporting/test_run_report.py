"""A run built in Python is kept and shown as a recipe's run is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import Dataset
from letter_rewards import odd_length
from torch import nn
from transformers import Trainer, TrainingArguments

from posttrain.observe.summary import summarise
from posttrain.observe.writer import completion_files, read_evaluation, read_events, read_metrics
from posttrain.process.phases import PHASES
from posttrain.trainers import BAPOConfig, BAPOTrainer, RunReport
from posttrain.trainers.reporting.run_report import changed_arguments, plain


def policy_trainer(model: Any, tokenizer: Any, folder: Path, **more: Any) -> BAPOTrainer:
    args = BAPOConfig(
        output_dir=str(folder / "out"), target=0.4, num_generations=4, per_device_train_batch_size=8,
        max_completion_length=6, max_steps=2, learning_rate=1e-2, use_cpu=True, bf16=False, report_to=[],
        logging_steps=1, save_strategy="no", eval_strategy="steps", eval_steps=2, eval_on_start=True,
    )  # fmt: skip
    rows = Dataset.from_list([{"prompt": f"{i}>", "answer": str(i)} for i in range(8)])
    return BAPOTrainer(
        model,
        odd_length,
        args=args,
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=tokenizer,
        **more,
    )


def test_a_policy_run_in_python_has_all_that_a_recipes_run_has(
    tiny_model: Any, tokenizer: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "mine"
    report = RunReport(run, settings={"data": {"name": "numbers"}})
    said: list[str] = []
    say = PHASES.say
    PHASES.say = lambda name, *more, **named: (said.append(name), say(name, *more, **named))[0]  # type: ignore[method-assign]
    try:
        policy_trainer(tiny_model, tokenizer, tmp_path, callbacks=[report]).train()
    finally:
        PHASES.say = say  # type: ignore[method-assign]
    assert [row["step"] for row in read_metrics(run) if "loss" in row] == [1, 2]
    assert [event["event"] for event in read_events(run)] == ["start", "totals", "end"]
    assert set(read_evaluation(run)) == {"before", "after"}
    assert read_evaluation(run)["after"]["problems"] == 8
    assert list(completion_files(run)) == [1, 2]
    recipe = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    assert (recipe["method"], recipe["data"]["name"], recipe["objective"]["target"]) == (
        "bapo",
        "numbers",
        0.4,
    )
    assert recipe["train"]["learning_rate"] == 1e-2
    assert "target" not in recipe["train"]  # once, with the objective
    summary = summarise(run)
    assert summary.result is not None
    assert summary.result[0] == "held-out accuracy"
    assert summary.basis.startswith("8 problems; 95 % intervals")
    assert "bapo" in (run / "report.html").read_text(encoding="utf-8")
    captured = capfd.readouterr()
    assert "step 2/2" in captured.out
    assert str(run / "report.html") in captured.out.replace("\n", "")
    assert "{'loss'" not in captured.out  # transformers' printer
    assert "%|" not in captured.err  # and its bar
    assert {"forward", "backward", "optimizer step"} <= set(said)
    assert not PHASES.listening  # the view is closed


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(1, 1)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (self.head(x) - labels).square().mean()}


def line_trainer(folder: Path, **more: Any) -> Trainer:
    rows: Any = [{"x": torch.tensor([float(i)]), "labels": torch.tensor([1.0])} for i in range(8)]
    args = TrainingArguments(
        output_dir=str(folder / "out"), max_steps=3, logging_steps=1, report_to=[], save_strategy="no", use_cpu=True,
        learning_rate=1e-4,
    )  # fmt: skip
    return Trainer(model=Line(), args=args, train_dataset=rows, eval_dataset=rows, **more)


def test_any_trainer_of_transformers_takes_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "any"
    trainer = line_trainer(tmp_path)
    RunReport(run).attach(trainer)
    trainer.evaluate()
    trainer.train()
    assert read_evaluation(run).keys() == {"before"}
    trainer.evaluate()
    assert read_evaluation(run)["after"]["problems"] == 8
    assert "held-out loss" in (run / "report.html").read_text(encoding="utf-8")  # written again
    captured = capfd.readouterr()
    assert "any  step 3/3" in " ".join(captured.out.split("\n")).replace("step   3", "step 3")
    assert "%|" not in captured.err
    assert captured.out.count("report: ") == 1


def test_as_a_plain_callback_elsewhere_it_leaves_the_screen_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "quiet"
    line_trainer(tmp_path, callbacks=[RunReport(run)]).train()
    assert [row["step"] for row in read_metrics(run) if "loss" in row] == [1, 2, 3]
    captured = capfd.readouterr()
    assert "quiet  step" not in captured.out
    assert "report: " in captured.out


def test_a_run_begun_anew_in_a_folder_shows_nothing_of_the_one_before(tmp_path: Path) -> None:
    run = tmp_path / "again"
    first = line_trainer(tmp_path)
    RunReport(run).attach(first)
    first.evaluate()
    first.train()
    second = line_trainer(tmp_path)
    RunReport(run).attach(second)
    second.train()
    assert read_evaluation(run) == {}
    assert [row["step"] for row in read_metrics(run)] == [1, 2, 3]


def test_another_process_than_the_main_one_writes_nothing(tmp_path: Path) -> None:
    trainer = line_trainer(tmp_path)
    trainer.state.is_world_process_zero = False
    report = RunReport(tmp_path / "other").attach(trainer)
    report.on_train_begin(trainer.args, trainer.state, trainer.control)
    report.on_train_end(trainer.args, trainer.state, trainer.control)
    assert not (tmp_path / "other").exists()


def test_only_what_was_set_is_told_and_no_secret(tmp_path: Path) -> None:
    args = TrainingArguments(
        output_dir=str(tmp_path),
        learning_rate=3e-4,
        hub_token="secret",
        lr_scheduler_type="cosine",
        use_cpu=True,
    )
    found = changed_arguments(args)
    assert found["learning_rate"] == 3e-4
    assert found["lr_scheduler_type"] == "cosine"
    assert "hub_token" not in found
    assert "weight_decay" not in found
    assert yaml.safe_load(yaml.safe_dump(found)) == found
    assert plain({"a": (1, Path("x"))}) == {"a": [1, "x"]}


def test_every_step_is_kept_and_a_new_run_sets_the_old_metrics_aside(
    tiny_model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    run = tmp_path / "mine"
    for _ in range(2):
        trainer = policy_trainer(tiny_model, tokenizer, tmp_path, callbacks=[RunReport(run)])
        trainer.args.logging_steps = 10
        trainer.args.eval_on_start = False
        trainer.train()
    assert [row["step"] for row in read_metrics(run) if "loss" in row] == [1, 2]
    assert [event["event"] for event in read_events(run)].count("start") == 1
    assert (run / "metrics.previous.jsonl").exists()


def test_a_file_in_the_way_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        RunReport(tmp_path / "file" / "run")
