from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from posttrain.observe.writer import (
    RunWriter,
    as_text,
    completion_files,
    read_evaluation,
    read_events,
    read_metrics,
)


def log_steps(writer: RunWriter, steps: range, value: float) -> None:
    for step in steps:
        writer.log(step, {"reward": value + step}, epoch=step / 10)


def test_one_line_a_step_with_what_was_logged(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path)
    writer.start(total=2)
    writer.log(1, {"reward": np.float32(0.5), "loss": torch.tensor(0.25), "name": "x"}, epoch=0.5)
    writer.log(2, {"reward": 1.0})
    first, second = read_metrics(tmp_path)
    assert (first["step"], first["epoch"], first["reward"], first["loss"], first["name"]) == (
        1,
        0.5,
        0.5,
        0.25,
        "x",
    )
    assert second["reward"] == 1.0
    assert second["time_s"] >= first["time_s"] >= 0
    assert read_events(tmp_path)[0]["total"] == 2


def test_lines_are_plain_json_even_for_nan_and_come_back_as_nan(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path)
    writer.log(
        1,
        {
            "loss": float("nan"),
            "ratio": float("inf"),
            "drop": -float("inf"),
            "reward": None,
            "q": [1.0, float("nan")],
        },
    )
    line = (tmp_path / "metrics.jsonl").read_text()
    json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    (row,) = read_metrics(tmp_path)
    assert math.isnan(row["loss"])
    assert (row["ratio"], row["drop"], row["reward"]) == (math.inf, -math.inf, None)


def test_a_torn_last_line_is_skipped_and_the_next_writer_goes_on(tmp_path: Path) -> None:
    log_steps(RunWriter(tmp_path), range(1, 4), 0.0)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-9])  # a kill in the middle of step 3's line
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2]
    writer = RunWriter(tmp_path)
    writer.start(2)
    log_steps(writer, range(3, 5), 0.0)
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3, 4]


def test_a_whole_last_line_without_its_newline_is_kept(tmp_path: Path) -> None:
    log_steps(RunWriter(tmp_path), range(1, 3), 0.0)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-1])
    RunWriter(tmp_path).start(2)
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2]


def test_a_broken_line_in_the_middle_is_an_error_that_says_where(tmp_path: Path) -> None:
    log_steps(RunWriter(tmp_path), range(1, 3), 0.0)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 0,\n' + path.read_bytes())
    with pytest.raises(ValueError, match=r"metrics\.jsonl: line 1"):
        read_metrics(tmp_path)


def test_resume_supersedes_the_steps_beyond_the_checkpoint(tmp_path: Path) -> None:
    """Steps 1-5, killed; resumed from 2, killed again at 3: steps 4 and 5 never happened in this run."""
    first = RunWriter(tmp_path)
    first.start(total=9)
    log_steps(first, range(1, 6), 0.0)
    first.write_completions(5, {"prompt": ["a"], "completion": ["b"]})
    second = RunWriter(tmp_path)
    second.start(2, total=9)
    log_steps(second, range(3, 4), 100.0)
    assert [(row["step"], row["reward"]) for row in read_metrics(tmp_path)] == [
        (1, 1.0),
        (2, 2.0),
        (3, 103.0),
    ]
    assert completion_files(tmp_path) == {}
    assert [event["event"] for event in read_events(tmp_path)] == ["start", "resume"]
    RunWriter(tmp_path).start()
    assert read_metrics(tmp_path) == []


def test_time_goes_on_after_a_resume(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path)
    writer.start()
    (tmp_path / "metrics.jsonl").open("a").write(
        '{"step": 7, "time_s": 500.0}\n{"step": 8, "time_s": 900.0}\n'
    )
    writer = RunWriter(tmp_path)
    writer.start(7)
    writer.log(8, {})
    assert 500 <= read_metrics(tmp_path)[-1]["time_s"] < 600


def test_training_and_evaluation_of_one_step_are_one_row(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path)
    writer.log(4, {"reward": 0.5, "kl": 0.1}, epoch=1.0)
    writer.log(4, {"eval_accuracy": 0.75, "kl": None})
    (row,) = read_metrics(tmp_path)
    assert (row["reward"], row["kl"], row["eval_accuracy"], row["epoch"]) == (0.5, 0.1, 0.75, 1.0)


def test_completions_hold_text_and_reject_ragged_columns(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path)
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}]
    reply = [{"role": "assistant", "content": "4"}]
    columns = {
        "prompt": [chat],
        "completion": [reply],
        "reward": [1.0],
        "answer": [None],
        "truncated": [False],
    }
    path = writer.write_completions(12, columns)
    assert path.name == "step-000012.parquet"
    (row,) = pq.read_table(path).to_pylist()
    assert row["prompt"] == "[system] Be brief.\n\n[user] 2+2?"
    assert (row["completion"], row["answer"], row["truncated"]) == ("4", None, False)
    assert as_text([{"role": "assistant", "content": None}]) == ""
    with pytest.raises(ValueError, match=r"step-000013.*unequal length"):
        writer.write_completions(13, {"prompt": ["a", "b"], "completion": ["c"]})
    assert list(completion_files(tmp_path)) == [12]


def test_recipe_environment_and_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/home/someone/bin/posttrain", "train", "x.yaml"])
    writer = RunWriter(tmp_path)
    writer.write_recipe({"method": "bapo", "train": {"max_steps": 3}})
    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text())["method"] == "bapo"
    writer.write_environment(seed=3)
    writer.write_environment(seed=4)
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert (environment["seed"], environment["command"]) == (4, "posttrain train x.yaml")
    assert [attempt["seed"] for attempt in environment["earlier"]] == [3]
    assert environment["versions"]["torch"]
    assert "someone" not in json.dumps(environment)
    writer.write_evaluation("before", {"accuracy": 0.25})
    writer.write_evaluation(
        "after", {"accuracy": 0.5}, {"prompt": ["p"], "completion": ["c"], "correct": [True]}
    )
    assert read_evaluation(tmp_path) == {"before": {"accuracy": 0.25}, "after": {"accuracy": 0.5}}
    assert (tmp_path / "evaluation" / "after.parquet").exists()
    assert not list(tmp_path.rglob("*.tmp"))
