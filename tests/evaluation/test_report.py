from __future__ import annotations

import copy
import io
import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

from posttrain.evaluation import grade_metrics, grades_page, results, store, terminal

RUN = {
    "format": 1,
    "benchmark": "math500",
    "model": {"path": "models/a"},
    "task": {"hash": "t" * 64, "problems": 12, "of": 500, "definition": {"title": "MATH-500"}},
    "sampling": {"samples": 4, "max_new_tokens": 100},
}


def write(folder, model, right, *, task="t" * 64, samples=4, group=True):
    """`right(problem, sample)` says which responses are right; problem 11 is cut off."""
    run = copy.deepcopy(RUN) | {"model": model}
    run["task"]["hash"] = task
    run["sampling"]["samples"] = samples
    grades, generations = [], []
    for i in range(12):
        for j in range(samples):
            row = {"id": str(i), "sample": j, "group": str(i % 3 + 1) if group else None}
            score = float(right(i, j))
            answer = None if i == 11 else "7" if score else "8"
            reason = "no box" if i == 11 else "equal" if score else "different"
            grades.append(
                {
                    **row,
                    "score": score,
                    "answer": answer,
                    "class": answer,
                    "reason": reason,
                    "flexible": score,
                }
                | {"tokens": 20 + 7 * i, "truncated": i == 11}
            )
            generations.append(
                {
                    **row,
                    "prompt": f"What is <b>{i}</b>?",
                    "gold": "7",
                    "text": f"It is {answer} & more",
                    "finish": "stop",
                }
                | {"tokens": 20 + 7 * i}
            )
    store.write_json(folder / store.RUN, run)
    store.write_lines(folder / store.GENERATIONS, generations)
    store.write_lines(folder / store.GRADES, grades)
    store.write_json(folder / store.METRICS, grade_metrics.summarise(run, grades))
    return folder


@pytest.fixture
def folders(tmp_path):
    for step, cut in ((0, 3), (100, 5), (200, 8)):
        write(
            tmp_path / f"run/benchmarks/step-{step:06d}/math500",
            {"path": "base", "run": "run", "step": step},
            lambda i, j, cut=cut: i < cut and j != 3,
        )
    write(tmp_path / "other/math500", {"path": "models/other"}, lambda i, j: i % 2 == 0)
    return tmp_path


def test_collected_labelled_and_ordered(folders):
    found = results.collect([folders / "run", folders / "other"])
    assert [r.label for r in found] == ["run @ step 0", "run @ step 100", "run @ step 200", "other"]
    assert found[0].title == "MATH-500, first 12 of 500"
    assert list(results.curves(found)) == ["MATH-500, first 12 of 500"]


def test_checkpoint_folders_of_a_run_are_one_series(tmp_path):
    for step in (200, 50):
        write(
            tmp_path / str(step) / "math500",
            {"path": f"runs/x/checkpoints/checkpoint-{step}"},
            lambda i, j: i < 3,
        )
    found = results.collect([tmp_path])
    assert [r.step for r in found] == [50, 200]
    assert len(results.curves(found)) == 1


def test_models_of_one_name_are_told_apart(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / name / "math500", {"path": f"{name}/final/"}, lambda i, j: i < 3)
    assert [r.label for r in results.collect([tmp_path])] == ["a/final", "b/final"]


def test_differences_are_against_the_first_and_refusals_are_shown(folders):
    write(folders / "strange/math500", {"path": "strange"}, lambda i, j: True, task="u" * 64)
    found = results.comparisons(results.collect([folders / "run", folders / "other", folders / "strange"]))
    assert [c.before.label for c in found] == ["run @ step 0"] * 4
    assert found[0].difference.value == pytest.approx(2 * 0.75 / 12)
    assert "not the same task" in found[3].refusal


def test_failed_items_are_spread_over_the_reasons(folders):
    one = results.collect([folders / "other"])[0]
    items = results.failed_items(one, 3)
    assert [g["reason"] for g, _ in items] == ["different", "no box", "different"]
    assert results.failed_items(one, 3) == items
    assert all(g["score"] != 1 for g, _ in results.failed_items(one, 1000))


class Checker(HTMLParser):
    VOID = {"meta", "br", "path", "use", "stop", "line", "rect", "link", "circle", "polyline"}

    def __init__(self):
        super().__init__()
        self.open, self.text, self.bold = [], [], 0

    def handle_starttag(self, tag, attributes):
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in self.VOID:
            return
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text.append(data)


def test_page_is_whole_escaped_and_says_the_numbers(folders):
    out = folders / "report.html"
    grades_page.write([folders / "run", folders / "other"], out)
    page = out.read_text()
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    text = " ".join(" ".join(checker.text).split())
    assert "<b>11</b>?" in text  # a prompt's markup is shown, not obeyed
    assert "<b>11</b>?" not in page
    assert "It is None & more" not in page
    for heading in (
        "Scores", "Differences, paired by problem", "Over checkpoints", "Several samples: pass@k",
        "By level or subject", "Response lengths", "Not right: other on",
    ):  # fmt: skip
        assert heading in text
    assert "18.8 %" in text  # 3 of 12 problems, 3 of 4 samples
    assert "50.0 %" in text
    assert "8% of the responses were cut off at 100 tokens" in text
    assert not re.search(r'(src|href)="http|url\(http|@import', page)  # nothing is fetched


def test_terminal_says_the_same(folders):
    found = results.collect([folders / "run", folders / "other"])
    console = Console(file=io.StringIO(), width=200)
    terminal.show(found, console)
    text = console.file.getvalue()
    for number in ("18.8 %", "50.0 %", "pass@4", "maj@4", "+12.5"):
        assert number in text
    assert "note MATH-500" in text


def test_one_result_needs_no_comparison(tmp_path):
    write(tmp_path / "m/math500", {"path": "m"}, lambda i, j: False, samples=1, group=False)
    out = tmp_path / "report.html"
    grades_page.write([tmp_path / "m"], out)
    text = out.read_text()
    assert "Differences" not in text
    assert "pass@k" not in text
    assert "0.0 to 24.2" in text  # Wilson: nothing right out of 12 is not certainty


def test_nothing_graded_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="posttrain eval generate"):
        results.collect([tmp_path])
    store.write_json(tmp_path / store.RUN, RUN)
    with pytest.raises(ValueError, match="posttrain eval grade"):
        results.collect([tmp_path])


def test_a_preference_shows_what_stands_behind_it(tmp_path):
    folder = tmp_path / "alpaca_eval"
    entry = {
        "value": 55.0,
        "standard_error": 1.5,
        "interval": [52, 58],
        "unit": "percent",
        "problems": 800,
        "samples": 800,
    }
    store.write_json(
        folder / store.RUN,
        {
            "benchmark": "alpaca_eval",
            "model": {"path": "mine"},
            "task": {"hash": "t", "problems": 805, "of": 805},
        },
    )
    behind = {
        "wins": 440, "losses": 350, "ties": 10, "failed": 5, "mean_length": 1234.0, "mean_length_reference": 2049.0,
        "swap_agreement": {"value": 0.1, "pairs": 200}, "prefers_first_shown": 0.93, "lc_missing": None,
    }  # fmt: skip
    store.write_json(
        folder / store.METRICS,
        {
            "benchmark": "alpaca_eval",
            "task": "t",
            "metrics": {"win_rate [judge]": entry},
            "problems": 805,
            "samples": 805,
        }
        | {"truncated": None, "no_answer": 0, "timeouts": 0, "cannot_judge": 5, "preference": behind},
    )
    store.write_lines(folder / store.GRADES, [])
    grades_page.write([tmp_path], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    for told in ("win_rate [judge]", "55.0 %", "10% of 200", "93%", "1,234", "names another winner in 90%"):
        assert told in text
