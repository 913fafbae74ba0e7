"""`posttrain data describe`: its tables, JSON and page, and what `posttrain plan` quotes of it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from posttrain.cli import main
from posttrain.data import Survey
from posttrain.observe.description_plots import bars, histogram
from posttrain.planning.row_warnings import LOOKED_AT, row_warnings
from posttrain.recipe.data_sections import DataSection


@pytest.fixture
def write(tmp_path: Path):
    def make(rows: list[dict[str, Any]], name: str = "rows.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return make


PAIRS = [
    {
        "prompt": f"Name a thing that is number {i} in the long list of all things.",
        "chosen": f"Thing {i} is a good thing to name." + " It is very good." * (i % 3 > 0),
        "rejected": f"No {i}.<|im_end|>",
        "score_chosen": 2.0,
        "score_rejected": 1.0,
    }
    for i in range(60)
]
SCORED = [
    {"prompt": f"question {i % 4}", "completion": f"answer {i}", "reward": float(i % 2)} for i in range(8)
]


def described(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["data", "describe", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_tables_fit_the_terminal(write, capsys) -> None:
    assert main(["data", "describe", write(PAIRS)]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100
    for title in (
        "Columns",
        "Lengths",
        "Duplicates",
        "Languages",
        "Faults in texts",
        "Kinds of answers",
        "Pairs",
        "Warnings",
    ):
        assert title in text
    words = " ".join(text.split())  # where a line breaks depends on the length of the file's path
    assert "60 rows: pairs of answers" in words
    assert "60 of 60 rejected texts hold marks of a chat template" in words
    assert "longer answer is chosen in 100%" in words


def test_json_has_the_same_numbers(write, capsys) -> None:
    found = described(capsys, write(PAIRS))
    assert (found["rows"], found["kind"]) == (60, "pairs")
    assert found["pairs"]["longer_chosen"]["hits"] == 60
    assert found["pairs"]["scored"] == 60
    assert found["faults"][0] | {"excerpt": ""} == {
        "role": "rejected", "fault": "chat-template marks", "rows": 60, "looked_at": 60, "first": 1, "excerpt": "",
    }  # fmt: skip
    assert found["warnings"]


def test_json_is_json_whatever_the_values(write, capsys) -> None:
    rows = [{"prompt": "a", "completion": "b", "score": score} for score in (math.nan, math.inf, 1.0)]
    found = described(capsys, write(rows))
    assert found["columns"][2]["missing"] == 1


def test_the_page_holds_plots_and_tables(write, capsys, tmp_path) -> None:
    out = tmp_path / "page.html"
    assert (
        main(
            [
                "data",
                "describe",
                write(PAIRS),
                "--html",
                str(out),
                "--reference",
                write(SCORED, "reference.jsonl"),
            ]
        )
        == 0
    )
    page = out.read_text(encoding="utf-8")
    assert page.count("<svg role") >= 3  # lengths of prompts and of answers, and their difference
    for title in (
        "Length of prompts",
        "Chosen minus rejected",
        "Trajectory quality",
        "Duplicates",
        "Examples",
    ):
        assert title in page
    assert "&lt;|im_end|&gt;" in page
    assert "<|im_end|>" not in page
    assert "$" not in page.partition("<body>")[0].partition("<title>")[2].partition("</title>")[0]
    assert f"page: {out}" in capsys.readouterr().out


def test_trajectory_quality_and_coverage_against_a_reference(write, capsys) -> None:
    # reference: prompts 0 and 2 are always scored 0, 1 and 3 always 1: minimum = best, until another answer comes
    reference = [*SCORED, {"prompt": "question 0", "completion": "better", "reward": 1.0}]
    found = described(capsys, write(SCORED), "--reference", write(reference, "reference.jsonl"))["coverage"]
    # lowest 0 1 0 1 -> .5; highest 1 1 0 1 -> .75; the data's mean .5
    assert (found["minimum"], found["best"], found["mean_return"]) == (0.5, 0.75, 0.5)
    assert found["quality"] == 0.0
    assert found["coverage"] == pytest.approx(8 / 9)
    given = described(
        capsys, write(SCORED), "--reference", write(reference, "reference.jsonl"), "--minimum", "0.25"
    )
    assert given["coverage"]["quality"] == pytest.approx(0.5)


def test_a_named_role_holds_for_the_reference_too(write, capsys) -> None:
    named = [{"a": row["prompt"], "b": row["completion"], "c": row["reward"]} for row in SCORED]
    words = ("--role", "prompt=a", "--role", "completion=b", "--role", "score=c", "--minimum", "0")
    for reference in (named, SCORED):
        path = write(reference, "reference.jsonl")
        found = described(capsys, write(named), "--reference", path, *words)["coverage"]
        assert (found["coverage"], found["quality"], found["best"]) == (1.0, 1.0, 0.5)


def test_a_model_gives_tokens_and_log_probabilities(write, capsys, tmp_path, tokenizer, tiny_model) -> None:
    folder = tmp_path / "model"
    tiny_model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    rows = [{"prompt": f"{i}21>", "completion": f"12{i}"} for i in range(10)]
    found = described(capsys, write(rows), "--model", str(folder), "--model-rows", "4")
    assert found["model"]["rows"] == 4
    assert found["model"]["tokens"] == {"completion": 16}
    assert found["lengths"]["prompt"]["tokens"]["largest"] == 4
    assert found["model"]["per_token"]["completion"] < 0
    assert main(["data", "describe", write(rows), "--model", str(folder), "--model-rows", "4"]) == 0
    assert "Log-probability of the answers under the model" in capsys.readouterr().out
    found = described(capsys, write(rows), "--tokenizer", str(folder))
    assert found["model"] is None
    assert found["lengths"]["completion"]["tokens"]["median"] == 3


def test_names_splits_and_limits(tmp_path, capsys) -> None:
    assert described(capsys, "sort", "--split", "test", "--limit", "20")["rows"] == 20
    for split, count in (("train", 3), ("test", 2)):
        rows = [json.dumps({"question": f"{split} {i}", "answer": str(i)}) for i in range(count)]
        (tmp_path / f"{split}-00000.jsonl").write_text("\n".join(rows))
    assert described(capsys, str(tmp_path), "--split", "test")["rows"] == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ROWS", "--role", "prompt"], "write ROLE=COLUMN"),
        (["ROWS", "--role", "prompt=nothing"], "no column 'nothing'; the columns are"),
        (["ROWS", "--limit", "0"], "--limit 0: at least 1"),
        (["ROWS", "--minimum", "1"], "needs --reference"),
        (["ROWS", "--split", "test"], "means nothing for a file"),
        (["ROWS", "--html", "/nowhere/page.html"], "make it first"),
        (["ROWS", "--tokenizer", "/nowhere"], "no tokenizer.json"),
        (["ROWS", "--model", "/nowhere", "--model-rows", "-1"], "0 or more"),
        (["recipe.yaml"], "is a recipe"),
        (["/nowhere/rows.jsonl"], "no file"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(write, capsys, words, message) -> None:
    path = write(PAIRS)
    assert main(["data", "describe", *(path if word == "ROWS" else word for word in words)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_plots_of_nothing_and_of_one_value() -> None:
    from posttrain.data.describe.spread import spread

    one = spread([3.5, 3.5])
    assert one is not None
    assert histogram({}, "x") is None
    assert histogram({"prompt": one}, "x") is None
    assert bars({"": {"one": 3}}, "x") is None
    assert bars({"": {"one": 3, "two": 0}}, "x") is not None
    assert bars({"": {}}, "x") is None


@pytest.mark.parametrize("most", [2000, 100_000])
def test_roles_with_bins_of_their_own_are_drawn_by_density(most) -> None:
    """As counts, the role with the wider bins would look the commoner one. An area of 1 each, a doubling as the unit
    where the axis is logarithmic."""
    from posttrain.data.describe.spread import spread

    roles = {"chosen": spread([1, 2, 2, 3, 4]), "rejected": spread([1, *range(1, 400), most])}
    figure = histogram({role: one for role, one in roles.items() if one is not None}, "characters")
    assert figure is not None
    (axes,) = figure.axes
    wide = axes.get_xscale() == "log"
    assert wide == (most == 100_000)
    for patch in axes.patches:
        heights, edges, _ = patch.get_data()
        assert sum(heights * np.diff(np.log2(edges) if wide else edges)) == pytest.approx(1)
    assert axes.get_ylabel() == f"share of rows, per {'doubling' if wide else 'unit'}"


# ---------------------------------------------------------------------------------------------------------- plan


def survey_of(rows: list[dict[str, Any]]) -> Survey:
    return Survey(list(rows[0]), None, rows)


def test_a_plan_quotes_what_its_own_rows_show() -> None:
    section = DataSection(path="pairs.jsonl")
    found = row_warnings(section, survey_of(PAIRS))
    assert any(
        line.startswith("data: 60 of 60 rejected texts hold marks of a chat template") for line in found
    )
    assert any("longer answer is chosen" in line for line in found)
    assert row_warnings(DataSection(name="sort"), survey_of(PAIRS)) == []
    assert row_warnings(section, Survey(None, None, [])) == []


def test_a_plan_looks_at_a_bounded_number_of_rows_and_says_so() -> None:
    rows = [{"prompt": f"question {i}<|im_end|>"} for i in range(LOOKED_AT * 2)]
    (line,) = row_warnings(DataSection(path="rows.jsonl"), survey_of(rows))
    assert line.startswith(
        f"data, of {LOOKED_AT:,} of {2 * LOOKED_AT:,} rows: {LOOKED_AT:,} of {LOOKED_AT:,} prompts"
    )
    long = [{"prompt": "q" * 5_000_000 + f"{i}<|im_end|>"} for i in range(10)]
    (line,) = row_warnings(DataSection(path="rows.jsonl"), survey_of(long))
    assert line.startswith("data, of 1 of 10 rows")
