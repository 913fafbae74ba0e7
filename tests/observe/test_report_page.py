from __future__ import annotations

import io
import re
import subprocess
import sys
from argparse import ArgumentParser
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from posttrain.commands import report as command
from posttrain.observe import plots, run_page
from posttrain.observe.curves import edges
from posttrain.observe.reasons import CLASSES
from posttrain.observe.reliability import read_reliability, write_reliability
from posttrain.observe.summary import signal_shares, summarise
from posttrain.observe.writer import RunWriter

VOID = {"meta", "br", "img", "input", "link", "hr"}


class Page(HTMLParser):
    """The text of a page, its tags, and whether every element is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data + " "

    def titles(self) -> list[str]:
        return [attrs["aria-label"] or "" for tag, attrs in self.tags if tag == "svg"]


def policy_run(folder: Path, steps: int = 50) -> RunWriter:
    writer = RunWriter(folder)
    writer.write_recipe(
        {
            "method": "bapo",
            "model": {"path": "tiny<b>"},
            "data": {"name": "sort"},
            "objective": {"target": 0.4},
        }
    )
    writer.write_environment(seed=7)
    writer.start(total=steps)
    for step in range(1, steps + 1):
        metrics = {
            "loss": 0.01, "grad_norm": 1.0 + step, "entropy": 1 / step, "kl": 0.001 * step, "learning_rate": 1e-4,
            "bapo/clip_low": 0.6, "bapo/clip_high": 1.2, "bapo/positive_share": 0.55,
            "bapo/positive_share_before": 0.55, "bapo/negative_ratio_max": 1.0 + step,
            "clip_ratio/low_mean": 0.01, "clip_ratio/high_mean": 0.02, "tokens_per_second": 4321.0,
            "signal/carried": 0.25, "signal/equal_rewards": 0.7, "signal/clipped_high": 0.05, "signal/tokens": 100.0,
        }  # fmt: skip
        if step % 2:
            metrics |= {
                "reward": step / steps, "accuracy": step / steps, "rewards/exact_match/mean": step / steps,
                "completions/mean_length": 6.5, "completions/min_length": 4, "completions/max_length": 9,
                "completions/clipped_ratio": 0.125, "frac_reward_zero_std": 0.5,
                "reward_failures/exact_match/timeout": 3.0,
            }  # fmt: skip
        writer.log(step, metrics)
    writer.write_evaluation(
        "before", {"accuracy": 0.3125},
        {"prompt": ["31>", "21>"], "completion": ["31", "12"], "answer": ["13", "12"], "correct": [False, True]},
    )  # fmt: skip
    writer.write_evaluation(
        "after", {"accuracy": 0.9375},
        {"prompt": ["31>", "21>"], "completion": ["<i>13", "12"], "answer": ["13", "12"], "correct": [True, True]},
    )  # fmt: skip
    writer.finish(steps)
    return writer


def page_of(folder: Path) -> Page:
    return Page(run_page.write_report(folder).read_text(encoding="utf-8"))


def test_the_page_holds_the_runs_numbers(tmp_path: Path) -> None:
    policy_run(tmp_path)
    page = page_of(tmp_path)
    words = " ".join(page.text.split())
    for number in ("0.3125 → 0.9375", "+0.6250", "50 of 50", "4,321", "25.00%", "70.00%", "5.00%", "75"):
        assert number in words, number
    assert "held-out accuracy" in words
    assert "exact_match timeout 75" in words  # 25 rollouts, three each
    assert "tiny<b>" in words  # text, not markup
    assert "<i>13" in words
    for title in (
        "Reward", "Accuracy", "Entropy [nats per token]", "Gradient norm", "KL to the reference [nats per token]",
        "Clip bounds of the ratio", "Positive share of the signal", "Clipped tokens", "Response length [tokens]",
        "Groups with equal rewards", "Generated tokens by class over the steps", "bapo/negative_ratio_max",
    ):  # fmt: skip
        assert title in page.titles(), title
    assert len(page.titles()) == len(set(page.titles()))


def test_the_page_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    policy_run(tmp_path)
    page = page_of(tmp_path)
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "img", "iframe")]
    links = {
        value
        for _, attrs in page.tags
        for key, value in attrs.items()
        if key in ("src", "href", "xlink:href") and value
    }
    assert all(link.startswith("#") for link in links)


def test_a_reward_models_reliability_is_drawn_and_told(tmp_path: Path) -> None:
    writer = policy_run(tmp_path)
    assert "Reliability" not in " ".join(page_of(tmp_path).text.split())
    table = {"confidence": [0.55, 0.9], "accuracy": [0.5, 0.75], "counts": [10, 40]}
    write_reliability(writer.checkpoints_dir, 20, table)
    page = page_of(tmp_path)
    words = " ".join(page.text.split())
    # (10 x .05 + 40 x .15) / 50
    told = "calibration on 50 held-out pairs at step 20: expected calibration error 0.130, surer than it is right"
    assert told in words
    assert "90.0% 75.0% 60% to 86% 40" in words  # Wilson's interval of 30 among 40
    assert "Reliability of the reward model" in page.titles()
    console = Console(file=io.StringIO(), width=120)
    run_page.print_summary(summarise(tmp_path), console)
    assert told in console.file.getvalue()  # type: ignore[attr-defined]  # a StringIO
    assert re.search(r"90\.0%\s+75\.0%\s+40", console.file.getvalue())  # type: ignore[attr-defined]
    write_reliability(writer.checkpoints_dir, 20, {**table, "accuracy": [0.6, 0.95]})
    found = read_reliability(tmp_path)
    assert found is not None
    assert "less sure than it is right" in found.in_words()


def test_what_a_method_logs_of_itself_stands_with_the_signal(tmp_path: Path) -> None:
    writer = policy_run(tmp_path)
    for step, share, least in ((51, 0.25, 0.5), (52, 0.75, 0.125)):
        found = {
            "copo/global_loss_share": share,
            "copo/local_weight_min": least,
            "copo/local_weight_max": least,
        }
        writer.log(step, found)
    assert [(name, value) for name, _, value in summarise(tmp_path).own] == [
        ("copo/global_loss_share", 0.5),
        ("copo/local_weight_min", 0.125),
        ("copo/local_weight_max", 0.5),
    ]
    words = " ".join(page_of(tmp_path).text.split())
    assert "bapo's own numbers over the steps copo/global_loss_share" in words
    out = io.StringIO()
    run_page.print_summary(summarise(tmp_path), Console(file=out, width=160))
    (line,) = [line for line in out.getvalue().splitlines() if line.startswith("copo/global_loss_share")]
    assert "0.5000" in line


def test_notes_name_what_to_worry_about(tmp_path: Path) -> None:
    policy_run(tmp_path)
    notes = " ".join(summarise(tmp_path).notes)
    assert (
        "Only 25% of the generated tokens carried gradient; the largest loss is equal_rewards (70%" in notes
    )
    assert "Adaptive bounds inactive: bapo was a fixed clip (0.60, 1.20)" in notes
    assert "75 responses could not be judged" in notes
    assert "did not close" not in notes


def test_bounds_that_move_are_not_called_inactive(tmp_path: Path) -> None:
    writer = policy_run(tmp_path)
    writer.log(51, {"bapo/clip_low": 0.6, "bapo/clip_high": 1.25})
    assert "inactive" not in " ".join(summarise(tmp_path).notes)


def test_signal_is_weighted_by_the_tokens_of_each_step() -> None:
    rows = [
        {"step": 1, "signal/carried": 1.0, "signal/tokens": 10.0},
        {"step": 2, "signal/carried": 0.5, "signal/tool": 0.5, "signal/tokens": 30.0},
    ]
    assert [(name, share) for name, _, share in signal_shares(rows)] == [("carried", 0.625), ("tool", 0.375)]
    assert set(plots.SIGNAL_COLOURS) == set(CLASSES)


def test_edges_of_a_curve_do_not_overlap() -> None:
    assert edges([1.0, 2.0, 3.0]) == (1.0, 3.0)
    assert edges([0.0] * 5 + [1.0] * 5) == (0.0, 1.0)
    assert edges([4.0]) == (4.0, 4.0)


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_an_empty_or_short_run_says_so(
    tmp_path: Path, steps: int, capsys: pytest.CaptureFixture[str]
) -> None:
    writer = RunWriter(tmp_path)
    writer.start(total=10)
    for step in range(1, steps + 1):
        writer.log(step, {"reward": 0.0, "loss": float("nan"), "signal/carried": 1.0, "signal/tokens": 5.0})
    parser = ArgumentParser()
    command.add_arguments(parser)
    assert command.main(parser.parse_args([str(tmp_path)])) == 0
    text = " ".join(page_of(tmp_path).text.split())
    if steps:
        assert f"Only {steps} steps were logged" in text
        assert f"last logged step {steps} of 10" in text
        assert "NaN or infinity was logged for loss" in text
    else:
        assert "No step was logged" in text
    assert "logged" in capsys.readouterr().out


def test_a_preference_run_shows_its_own_curves(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path)
    writer.start()
    for step in range(1, 9):
        writer.log(step, {
            "loss": 0.7 / step, "rewards/accuracies": 0.5 + step / 20, "rewards/margins": step / 10,
            "rewards/chosen": 0.1, "rewards/rejected": -0.1 * step,
            "logps/chosen": -20.0, "logps/rejected": -30.0 - step,
        })  # fmt: skip
    titles = page_of(tmp_path).titles()
    for title in (
        "Loss",
        "Preferred response scored higher",
        "Implicit reward",
        "Log-prob of the responses [nats]",
    ):
        assert title in titles
    assert "Reward" not in titles
    assert summarise(tmp_path).result == ("preference accuracy", pytest.approx(0.625), pytest.approx(0.825))


def test_several_reward_functions_are_told_apart_by_name(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path)
    for step in (1, 2, 3):
        writer.log(step, {"reward": 1.0 * step, "rewards/math_answer/mean": 0.5, "rewards/format/mean": 0.25})
    text = page_of(tmp_path).text.split()
    assert {"math_answer", "format", "weighted"} <= set(text)


def test_rollouts_stand_in_where_nothing_was_held_out(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path)
    writer.log(1, {"reward": 0.0})
    writer.log(20, {"reward": 1.0})
    for step, text in ((1, "wrong at first"), (20, "right at last"), (30, "superseded")):
        writer.write_completions(step, {"prompt": ["p"], "completion": [text], "reward": [float(step > 1)]})
    summary = summarise(tmp_path)
    assert summary.pair_titles == ("rollout of step 1", "rollout of step 20")
    (pair,) = summary.pairs
    assert (pair.before, pair.after) == ("p → wrong at first", "p → right at last")
    assert (pair.before_verdict, pair.after_verdict) == ("reward 0.00", "reward 1.00")


def test_a_folder_that_is_no_run_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = ArgumentParser()
    command.add_arguments(parser)
    for folder in (tmp_path, tmp_path / "absent"):
        assert command.main(parser.parse_args([str(folder)])) == 2
        error = capsys.readouterr().err
        assert error.startswith("posttrain report: ")
        assert error.count("\n") == 1
    assert not (tmp_path / "report.html").exists()


def test_the_report_reads_a_run_without_torch(tmp_path: Path) -> None:
    RunWriter(tmp_path).log(1, {"reward": 1.0})
    code = (
        "import sys; sys.modules['torch'] = None; from posttrain.observe.run_page import write_report; "
        "write_report(sys.argv[1])"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=120)
    assert (tmp_path / "report.html").exists()


def test_a_curve_that_hardly_moves_is_not_drawn_as_noise():
    panel = plots.Panel(
        plots.Spec("Policy", "Entropy", (("entropy", ""),)), [plots.Curve("", [1, 2], [6.9180, 6.9185])]
    )
    image = plots.draw(panel)
    assert "6.918" not in image  # matplotlib's offset above the axis
    assert re.search(r">\s*7\.2\s*<", image)  # ten percent above and below
