from __future__ import annotations

import io
import re
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from posttrain.commands import report as command
from posttrain.observe.overlay import (
    differing_settings,
    final_figures,
    overlaid,
    print_comparison,
    read_runs,
    run_labels,
)
from posttrain.observe.writer import RunWriter


def make_run(folder: Path, recipe: dict[str, Any], scale: float, own: str = "") -> Path:
    writer = RunWriter(folder)
    writer.write_recipe({"output": {"name": folder.name}, **recipe})
    writer.start(total=10)
    for step in range(1, 11):
        metrics = {
            "reward": scale * step,
            "rewards/exact/mean": scale * step,
            "entropy": 1 / step,
            "loss": 0.1,
        }
        writer.log(step, metrics | ({own: scale} if own else {}))
    writer.finish(10)
    return folder


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    first = {"method": "grpo", "train": {"learning_rate": 1e-6, "seed": 0}, "rewards": [{"name": "exact"}]}
    second = {
        "method": "bapo", "train": {"learning_rate": 1e-5, "seed": 0}, "objective": {"target": 0.5},
        "rewards": [{"name": "exact"}, {"name": "style"}],
    }  # fmt: skip
    return [make_run(tmp_path / "a", first, 0.05, "grpo/x"), make_run(tmp_path / "b", second, 0.1)]


def test_only_settings_that_differ_are_shown_and_never_the_runs_own_names() -> None:
    recipes = [
        {
            "method": "grpo",
            "train": {"seed": 0, "lr": 1e-6},
            "rewards": [{"name": "x"}],
            "output": {"name": "a"},
        },
        {
            "method": "grpo",
            "train": {"seed": 0, "lr": 1e-5},
            "rewards": [{"name": "x"}],
            "output": {"name": "b"},
        },
        {"method": "grpo", "train": {"seed": 0, "lr": 1e-5, "bf16": True}, "rewards": [{"name": "y"}]},
    ]
    assert differing_settings(recipes) == [
        ("train.lr", ["1e-06", "1e-05", "1e-05"]),
        ("rewards[0].name", ["x", "x", "y"]),
        ("train.bf16", ["unset", "unset", "True"]),
    ]
    assert differing_settings([recipes[0], recipes[0]]) == []


def test_labels_are_as_long_as_they_must_be() -> None:
    assert run_labels([Path("/r/x/a"), Path("/r/x/b")]) == ["a", "b"]
    assert run_labels([Path("/r/x/a"), Path("/r/y/a"), Path("/r/y/b")]) == ["x/a", "y/a", "y/b"]


def test_final_figures_are_the_ends_of_the_curves(two: list[Path]) -> None:
    found = dict(final_figures(read_runs(two)))
    ends = found["reward"]
    assert ends[0] == (pytest.approx(0.05 * 3), pytest.approx(0.05 * 8))  # means of steps 1 to 5, 6 to 10
    assert ends[1] == (pytest.approx(0.1 * 3), pytest.approx(0.1 * 8))
    assert "accuracy" not in found


def test_one_panel_a_metric_one_curve_a_run_each_in_its_colour(two: list[Path]) -> None:
    runs = read_runs(two)
    panels = {panel.spec.title: panel for panel in overlaid(runs)}
    reward = panels["Reward: weighted sum"]
    assert [curve.colour for curve in reward.curves] == [run.colour for run in runs]
    assert reward.curves[0].values != reward.curves[1].values
    assert panels["Loss: training"].spec.section == "Run"  # a surrogate's value says nothing about learning
    assert "grpo/x" not in panels  # one run alone has it


def test_runs_beyond_the_palette_differ_by_their_dash(tmp_path: Path) -> None:
    runs = read_runs([make_run(tmp_path / f"r{i}", {"method": "grpo"}, 0.1) for i in range(9)])
    assert runs[8].colour == runs[0].colour
    assert len({(run.colour, run.dash) for run in runs}) == 9


def call(*words: str) -> int:
    parser = ArgumentParser()
    command.add_arguments(parser)
    return command.main(parser.parse_args(list(words)))


def test_the_command_writes_one_page_beside_the_first_run(
    two: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*map(str, two)) == 0
    page = (two[0].parent / "comparison.html").read_text(encoding="utf-8")
    for text in (
        "2 runs compared",
        "train.learning_rate",
        "<td>1e-05</td>",
        "objective.target",
        "Reward: weighted sum",
    ):
        assert text in page, text
    assert "train.seed" not in page
    assert not (two[0] / "report.html").exists()
    assert "report: " in capsys.readouterr().out
    out = two[0].parent / "elsewhere.html"
    assert call(*map(str, two), "--out", str(out)) == 0
    assert out.exists()


def test_names_with_markup_stay_text(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / f"<b>[red]{i}", {"method": "grpo", "x": f"<i>{i}"}, 0.1) for i in range(2)]
    assert call(*map(str, folders)) == 0
    page = (tmp_path / "comparison.html").read_text(encoding="utf-8")
    assert not re.search(r"<b>\[red\]|<i>[01]", page)
    out = io.StringIO()
    print_comparison(read_runs(folders), Console(file=out, width=120))
    assert "<b>[red]0" in out.getvalue()


def test_what_makes_runs_hard_to_compare_is_said(two: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    for folder, rows in zip(two, ("64 rows, sha1 a", "64 rows, sha1 b"), strict=True):
        RunWriter(folder).write_environment(rows=rows)
    third = make_run(two[0].parent / "c", {"method": "grpo"}, 0.1)
    RunWriter(third).start(total=20)
    for step in range(1, 4):
        RunWriter(third).log(step, {"reward": 0.1})
    assert call(*map(str, [*two, third])) == 0
    said = capsys.readouterr().out
    assert "not trained on the same rows" in said
    assert "c: not at its end, step 3 of 20" in said


@pytest.mark.parametrize("broken", ["twice", "missing"])
def test_what_cannot_be_compared_is_refused_in_one_line(
    two: list[Path], broken: str, capsys: pytest.CaptureFixture[str]
) -> None:
    other = two[0] if broken == "twice" else two[0].parent / "nothing"
    assert call(str(two[0]), str(other)) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert ("named twice" if broken == "twice" else "no such run folder") in said
