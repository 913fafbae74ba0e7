"""What headlines rest on, verdicts of graded rewards, settings that a resume changed, and the page's two looks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from posttrain.observe import plot_style, run_page
from posttrain.observe.basis import mean_interval, wilson
from posttrain.observe.pairs import is_graded, verdict
from posttrain.observe.summary import summarise
from posttrain.observe.writer import RecipeChange, RunWriter


def test_wilson_by_hand() -> None:
    low, high = wilson(
        0.5, 100
    )  # Wilson's centre is 1/2; half width 1.96 sqrt(1/4 + 1.96^2/400) / (10 (1 + .0384))
    assert (low, high) == (pytest.approx(0.40383, abs=1e-5), pytest.approx(0.59617, abs=1e-5))
    assert wilson(1.0, 20) == (pytest.approx(1 / (1 + 1.959964**2 / 20), abs=1e-9), pytest.approx(1.0))
    assert wilson(0.0, 20)[0] == pytest.approx(0.0)


def test_an_interval_of_a_mean_by_hand() -> None:
    # mean 2, standard deviation 1, three values
    half = 1.959964 / 3**0.5
    assert mean_interval([1.0, 2.0, 3.0]) == (pytest.approx(2 - half), pytest.approx(2 + half))
    assert mean_interval([1.0]) is None


def run_with_held_out(folder: Path, rewards: dict[str, list[float]], metric: str) -> RunWriter:
    writer = RunWriter(folder)
    writer.write_recipe({"method": "grpo"})
    writer.start(total=5)
    for step in range(1, 6):
        writer.log(step, {"reward": step / 5})
    for when, values in rewards.items():
        writer.write_evaluation(
            when,
            {metric: sum(values) / len(values)},
            {
                "prompt": [f"p{i}" for i in range(len(values))],
                "completion": ["c"] * len(values),
                "reward": values,
                "rewards/grade": values,
                "correct": [value == 1.0 for value in values],  # as folders of earlier versions have it
            },
        )
    writer.finish(5)
    return writer


def test_a_graded_reward_is_called_neither_right_nor_wrong(tmp_path: Path) -> None:
    run_with_held_out(tmp_path, {"before": [0.0, 0.25], "after": [0.5, 1.0]}, "reward")
    pairs = summarise(tmp_path).pairs
    found = {(pair.before_verdict, pair.after_verdict) for pair in pairs}
    assert found == {("reward 0.00", "reward 0.50"), ("reward 0.25", "reward 1.00")}
    assert "tag wrong" not in run_page.write_report(tmp_path).read_text(encoding="utf-8")


def test_right_and_wrong_are_said_where_the_reward_says_nothing_else(tmp_path: Path) -> None:
    run_with_held_out(tmp_path, {"before": [0.0, 0.0], "after": [0.0, 1.0]}, "accuracy")
    assert {pair.after_verdict for pair in summarise(tmp_path).pairs} == {"right", "wrong"}


def test_only_the_first_reward_decides_whether_a_run_is_graded() -> None:
    rows = [{"rewards/exact": 1.0, "rewards/style": 0.3}, {"rewards/exact": None, "rewards/style": 0.7}]
    assert not is_graded(rows)
    assert is_graded([{"rewards/style": 0.3, "rewards/exact": 1.0}])
    assert not is_graded([])
    assert verdict({"correct": None, "reward": None}) == ""


def test_the_headline_says_its_problems_and_interval(tmp_path: Path) -> None:
    run_with_held_out(tmp_path, {"before": [0.0] * 50 + [1.0] * 50, "after": [1.0] * 100}, "accuracy")
    assert summarise(tmp_path).basis == "100 problems; 95 % intervals 0.404 to 0.596 and 0.963 to 1"
    page = run_page.write_report(tmp_path).read_text(encoding="utf-8")
    assert "100 problems; 95 % intervals" in page


def test_a_mean_reward_has_the_interval_of_its_rows(tmp_path: Path) -> None:
    run_with_held_out(tmp_path, {"before": [1.0, 2.0, 3.0], "after": [2.0, 2.0, 2.0]}, "reward")
    assert summarise(tmp_path).basis == "3 problems; 95 % intervals 0.868 to 3.13 and 2 to 2"


def test_the_count_of_the_evaluation_itself_comes_first(tmp_path: Path) -> None:
    writer = run_with_held_out(tmp_path, {}, "")
    for when in ("before", "after"):
        writer.write_evaluation(when, {"loss": 1.0, "problems": 640.0})
    assert summarise(tmp_path).basis == "640 problems"
    assert "<td>problems</td>" not in run_page.write_report(tmp_path).read_text(encoding="utf-8")


def test_a_curve_says_how_much_of_it_is_averaged(tmp_path: Path) -> None:
    writer = run_with_held_out(tmp_path, {}, "")
    assert summarise(tmp_path).basis == "means of the first and last 2 of 5 logged steps"
    writer.write_completions(5, {"prompt": ["p"] * 8, "completion": ["c"] * 8})
    assert (
        summarise(tmp_path).basis
        == "means of the first and last 2 of 5 logged steps; 8 responses per rollout"
    )


def test_stretches_of_steps_and_their_settings(tmp_path: Path) -> None:
    writer = run_with_held_out(tmp_path, {}, "")
    rate = "train.learning_rate"
    writer.write_recipe_changes(
        2, [RecipeChange(rate, 0.1, 0.2), RecipeChange("train.weight_decay", None, 0.01)]
    )
    writer.write_recipe_changes(4, [RecipeChange(rate, 0.2, 0.3)])
    assert summarise(tmp_path).stretches == [
        (rate, 1, 2, 0.1), (rate, 3, 4, 0.2), (rate, 5, None, 0.3),
        ("train.weight_decay", 1, 2, "unset"), ("train.weight_decay", 3, None, 0.01),
    ]  # fmt: skip
    page = run_page.write_report(tmp_path).read_text(encoding="utf-8")
    assert "<td>3 to 4</td><td>0.2</td>" in page
    assert "<td>5 to the end</td><td>0.3</td>" in page


def test_every_colour_of_a_plot_has_a_light_and_a_dark_form() -> None:
    template = Path(run_page.__file__).with_name("report_template.html").read_text(encoding="utf-8")
    light, dark = re.findall(r":root \{(.*?)\}", template, re.DOTALL)
    variables = set(
        re.findall(r"var\(--([a-z0-9-]+)", template + plot_style.themed(" ".join(plot_style._VARIABLES)))
    )
    for name in variables:
        assert f"--{name}:" in light, name
        assert f"--{name}:" in dark, name
    for colour, name in plot_style._VARIABLES.items():
        assert f"--{name}: {colour};" in light, name  # the fallback is the light look
    assert "@media screen and (prefers-color-scheme: dark)" in template


def test_no_plot_paints_its_own_background_or_black_text(tmp_path: Path) -> None:
    run_with_held_out(tmp_path, {"before": [0.0, 1.0], "after": [1.0, 1.0]}, "accuracy")
    page = run_page.write_report(tmp_path).read_text(encoding="utf-8")
    drawn = "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))
    assert "var(--plot-0, #2563eb)" in drawn
    assert "#ffffff" not in drawn
    assert not re.search(r"(fill|stroke): #", drawn)
