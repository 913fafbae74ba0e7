"""Marks of good and bad: what is read as one, what is refused, and pairs read as two marked rows each."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from posttrain.data import DataError, load_rows, survey
from posttrain.data.conversations import Dropped
from posttrain.data.labels import label_of, unpaired
from posttrain.planning.row_needs import needs_of_method
from posttrain.recipe.data_sections import DataSection
from posttrain.recipe.methods import METHODS

NEEDS = needs_of_method(METHODS["kto"])
MARKED = {"prompt": "p", "completion": "c", "label": True}


@pytest.fixture
def read(tmp_path: Path):
    def of(rows: list[dict[str, Any]], **keys: Any):
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return survey(DataSection.model_validate({"path": str(file), **keys}), NEEDS)

    return of


@pytest.mark.parametrize("value", [True, 1, 1.0, "true", " True", "1", np.bool_(True), np.int64(1)])
def test_marks_of_good(value) -> None:
    assert label_of(value) is True


@pytest.mark.parametrize("value", [False, 0, 0.0, "false", "FALSE", "0", np.bool_(False)])
def test_marks_of_bad(value) -> None:
    assert label_of(value) is False


@pytest.mark.parametrize("value", [None, "", "  ", float("nan")])
def test_no_mark_is_a_reason_to_drop(value) -> None:
    with pytest.raises(Dropped, match="no label"):
        label_of(value)


@pytest.mark.parametrize("value", ["thumbs up", "good", "yes", -1, 5, 0.5, [True], {"up": 1}])
def test_what_only_its_writer_can_read_is_refused(value) -> None:
    with pytest.raises(
        DataError, match="column 'mark' holds .*, and a label is true or false, or 1 or 0; rewrite"
    ):
        label_of(value, "mark")


def test_a_refused_mark_names_its_row(read) -> None:
    with pytest.raises(DataError, match=r"rows.jsonl: row 2: column 'label' holds 'thumbs up'"):
        read([MARKED, {**MARKED, "label": "thumbs up"}])
    with pytest.raises(DataError, match="no column 'label'; the columns are prompt, completion"):
        read([{"prompt": "p", "completion": "c"}])


def test_rows_with_marks_are_read_and_counted(read) -> None:
    found = read([MARKED, {**MARKED, "label": 0}, {**MARKED, "label": None}, {**MARKED, "completion": " "}])
    assert found.rows == [MARKED, {**MARKED, "label": False}]
    assert found.counts.dropped == {"no label": 1, "no completion": 1}
    named = read([{"q": "p", "a": "c", "up": 1}], prompt="q", completion="a", label="up")
    assert named.rows == [MARKED]
    assert named.notes == ()


def test_pairs_are_two_rows_each_and_plan_says_so(read) -> None:
    rows = [
        {"prompt": "p", "chosen": "good", "rejected": "bad", "score": 1},
        {"prompt": "q", "chosen": "same", "rejected": "same", "score": 2},
        {"prompt": "r", "chosen": "good", "rejected": "", "score": 2},
    ]
    found = read(rows)
    assert [(row["prompt"], row["completion"], row["label"]) for row in found.rows] == [
        ("p", "good", True), ("p", "bad", False), ("r", "good", True),
    ]  # fmt: skip
    assert (found.counts.read, found.counts.used) == (6, 3)
    assert found.counts.dropped == {"chosen equals rejected": 2, "no completion": 1}
    assert (
        found.notes[0]
        == "each pair is read as two rows: column 'chosen' marked good, column 'rejected' marked bad"
    )
    assert found.notes[1] == "columns not read: score"
    assert read(rows, limit=1).counts.used == 1


def test_marks_win_over_pairs_unless_the_pair_is_named(read) -> None:
    both = {**MARKED, "chosen": "x", "rejected": "y"}
    assert read([both]).rows == [MARKED]
    named = read([both], chosen="chosen", rejected="rejected")
    assert [row["completion"] for row in named.rows] == ["x", "y"]
    with pytest.raises(DataError, match="'chosen' and 'label' are both named"):
        read([both], chosen="chosen", label="label")
    with pytest.raises(DataError, match="no column 'best'"):
        read([both], chosen="best")


def test_conversations_hold_the_prompt_of_a_marked_answer(read) -> None:
    talk = [{"role": role, "content": role[0]} for role in ("user", "assistant", "user", "assistant")]
    ((row,), pairs) = (
        read([{"messages": talk, "label": 1}]).rows,
        read([{"chosen": talk, "rejected": talk[:2]}]).rows,
    )
    assert (row["prompt"], row["completion"]) == (talk[:3], talk[3:])
    assert [(one["prompt"], one["label"]) for one in pairs] == [(talk[:3], True), (talk[:1], False)]


def test_a_pair_of_a_named_column_inside_a_column() -> None:
    good, bad = unpaired({"p": 1, "a": {"b": "x"}, "c": "y"}, "a.b", "c")
    assert (good["completion"], good["label"], bad["completion"], bad["label"]) == ("x", True, "y", False)


def test_the_shared_demos_are_read_as_they_come(shared_data) -> None:
    folder = shared_data / "dpo_kto_demo"
    marked = load_rows(DataSection(path=str(folder / "kto_en_demo.json.gz")), needs=NEEDS)
    with gzip.open(folder / "kto_en_demo.json.gz", "rt", encoding="utf-8") as file:
        raw = json.load(file)
    assert marked.counts.used == 300
    assert marked.rows["label"] == [row["label"] for row in raw]
    assert marked.rows[0]["completion"][0]["content"] == raw[0]["messages"][-1]["content"]
    pairs = load_rows(DataSection(path=str(folder / "dpo_en_demo.json.gz")), needs=NEEDS)
    assert (pairs.counts.used, sum(pairs.rows["label"])) == (600, 300)
