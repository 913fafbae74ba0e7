"""Values that are no text: what a gold, a prompt or a completion of them becomes, or why it is refused."""

from __future__ import annotations

import datetime
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy
import pandas
import pytest

from posttrain.data import DataError, load_rows, survey
from posttrain.data.conversations import Dropped
from posttrain.data.mapping import gold_answer
from posttrain.data.row_layout import Needs
from posttrain.data.values import has_column, lookup, text_of
from posttrain.recipe.data_sections import AnswerSection, DataSection

PROMPTS = Needs(texts=())


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a", "a"),
        (7, "7"),
        (10**30, "1" + "0" * 30),
        (111.0, "111"),
        (-0.5, "-0.5"),
        (1e300, "1e+300"),
        (True, "True"),
        (Decimal("111.00"), "111"),
        (Decimal("0.10"), "0.1"),
        (["111"], "111"),
        ([[111.0]], "111"),
        (("x",), "x"),
        (numpy.float64(3.0), "3"),
        (numpy.int64(3), "3"),
        (numpy.str_("x"), "x"),
        (numpy.array(["x"]), "x"),
        (numpy.array(4.0), "4"),
        (datetime.date(2025, 1, 2), "2025-01-02"),
    ],
)
def test_values_that_are_one_text(value: Any, text: str) -> None:
    assert text_of(value, "c") == text


@pytest.mark.parametrize(
    "value", [None, float("nan"), numpy.nan, numpy.float32("nan"), pandas.NA, pandas.NaT, Decimal("nan"), [], [None]]
)  # fmt: skip
def test_gaps_are_no_text(value: Any) -> None:
    assert text_of(value, "c") is None
    with pytest.raises(Dropped, match="no answer"):
        gold_answer(value, AnswerSection())


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        (["1", "2"], r"column 'c' holds a list of 2, not one text; name one item, e\.g\. c\.0"),
        (numpy.array([1, 2]), "holds a list of 2"),
        ({"ground_truth": "7", "style": "rule"}, r"\(ground_truth, style\); name the key to use, e\.g\. c\.ground"),
        ([{"ground_truth": "7"}], "holds a mapping"),
        ({}, "holds a mapping"),
        (b"7", "holds bytes"),
    ],
)  # fmt: skip
def test_containers_are_refused_with_the_remedy(value: Any, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        text_of(value, "c")


def test_a_key_inside_a_column() -> None:
    row = {"a": {"b": [{"c": 1}]}, "x.y": 2}
    assert lookup(row, "a.b.0.c") == 1
    assert lookup(row, "x.y") == 2
    assert not has_column(row, "a.b.1.c")
    assert not has_column(row, "a.z")
    assert has_column({"a": None}, "a")
    assert not has_column({"a": None}, "a.b")


@pytest.fixture
def section(tmp_path: Path):
    def make(rows: list[dict[str, Any]], **keys: Any) -> DataSection:
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return DataSection.model_validate({"path": str(file), **keys})

    return make


def test_a_column_with_gaps_from_pandas(tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    pandas.DataFrame({"prompt": ["a", "b", "c"], "answer": [3.0, None, 5.0]}).to_parquet(file)
    loaded = load_rows(DataSection(path=str(file), answer=AnswerSection()), needs=PROMPTS)
    assert list(loaded.rows["answer"]) == ["3", "5"]
    assert loaded.counts.dropped == {"no answer": 1}


def test_verls_rows(section) -> None:
    row = {
        "prompt": [{"role": "user", "content": "q"}],
        "reward_model": {"ground_truth": "7", "style": "rule"},
    }
    with pytest.raises(
        DataError, match=r"row 2: column 'reward_model' holds a mapping.*reward_model\.ground_truth"
    ):
        survey(section([row | {"reward_model": "7"}, row], answer={"column": "reward_model"}), PROMPTS)
    data = section(
        [row], answer={"column": "reward_model.ground_truth"}, columns={"style": "reward_model.style"}
    )
    (found,) = survey(data, PROMPTS).rows
    assert (found["answer"], found["style"]) == ("7", "rule")
    with pytest.raises(DataError, match=r"no column 'reward_model\.truth'"):
        survey(section([row], answer={"column": "reward_model.truth"}), PROMPTS)


def test_several_golds_are_refused_with_both_remedies(section) -> None:
    with pytest.raises(DataError, match=r"answer\.column: COLUMN\.0.*reward of your own"):
        survey(section([{"prompt": "q", "answer": ["1", "2"]}], answer={}), PROMPTS)


def test_prompts_and_completions_that_are_no_text(section) -> None:
    sft = Needs(texts=("completion",), others=False)
    rows = [
        {"prompt": 12.0, "completion": ["x"]},
        {"prompt": float("nan"), "completion": "x"},
        {"prompt": "q", "completion": float("nan")},
        {"prompt": ["q"], "completion": 3},
    ]
    found = survey(section(rows), sft)
    assert found.rows == [{"prompt": "12", "completion": "x"}, {"prompt": "q", "completion": "3"}]
    assert found.counts is not None
    assert found.counts.dropped == {"no prompt": 1, "no completion": 1}
    with pytest.raises(DataError, match="row 1: column 'completion' holds a list of 2"):
        survey(section([{"prompt": "q", "completion": ["a", "b"]}]), sft)


def test_templates_over_numbers_and_gaps(section) -> None:
    rows = [{"a": 3.0, "b": 1.5}, {"a": float("nan"), "b": 1.0}]
    found = survey(section(rows, template="{a} and {b:.2f}"), PROMPTS)
    assert [row["prompt"] for row in found.rows] == ["3 and 1.50"]
    with pytest.raises(DataError, match="column 'a' holds a list of 2"):
        survey(section([{"a": [1, 2]}], template="{a}"), PROMPTS)


def test_numbers_beyond_arrow_are_left_out_or_refused(section) -> None:
    loaded = load_rows(section([{"prompt": "q", "id": 2**70}]), needs=PROMPTS)
    assert loaded.counts.left_out_columns == ("id",)
    with pytest.raises(DataError, match="more than 64 bits"):
        load_rows(section([{"prompt": "q", "id": 2**70}], columns={"number": "id"}), needs=PROMPTS)
