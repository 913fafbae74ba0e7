"""scikit-learn's digits as rows."""

from __future__ import annotations

import pytest

from posttrain.data import load_rows
from posttrain.data.digits import Digits
from posttrain.data.row_layout import Needs
from posttrain.recipe.data_sections import DataSection

pytest.importorskip("sklearn")


def test_splits_share_nothing_and_follow_from_the_seed():
    train, test = (list(Digits().rows(split, completions=False)) for split in ("train", "test"))
    assert (len(train), len(test)) == (1397, 400)
    seen = {str(row["image"]) for row in train}
    assert len(seen & {str(row["image"]) for row in test}) <= 1  # the set itself may hold an image twice
    assert list(Digits(seed=1).rows("test", completions=False)) != test
    assert {row["prompt"] for row in test} == {str(i) for i in range(10)}
    flat = [value for row in test for line in row["image"] for value in line]
    assert (min(flat), max(flat)) == (0, 255)


def test_prompts_alone():
    rows = list(Digits(prompts_only=True).rows("train", completions=False))
    assert rows == [{"prompt": str(i), "label": str(i)} for i in range(10)]


def test_rows_reach_a_trainer_with_their_images():
    loaded = load_rows(DataSection(name="digits", limit=3), needs=Needs((), ("image",), others=False))
    assert loaded.rows.column_names == ["prompt", "image"]
    assert len(loaded.rows[0]["image"]) == 8


def ink(image: list[list[int]]) -> int:
    return sum(map(sum, image))


def test_pairs_are_of_one_class_and_one_split_the_bolder_chosen():
    rows = list(Digits(pairs=True).rows("test", completions=False))
    plain = list(Digits().rows("test", completions=False))
    labels = {str(row["image"]): row["label"] for row in plain}
    assert 190 <= len(rows) <= 200
    for row in rows:
        assert ink(row["chosen_image"]) >= ink(row["rejected_image"])
        assert labels[str(row["chosen_image"])] == labels[str(row["rejected_image"])] == row["prompt"]


def test_bold_ones_are_the_boldest_of_their_class():
    plain, bold = (list(Digits(bold=flag).rows("train", completions=False)) for flag in (False, True))
    for digit in map(str, range(10)):
        kept = [ink(row["image"]) for row in bold if row["label"] == digit]
        every = sorted((ink(row["image"]) for row in plain if row["label"] == digit), reverse=True)
        assert sorted(kept, reverse=True) == every[: len(every) // 5]


def test_kinds_exclude_each_other():
    with pytest.raises(ValueError, match="exclude each other"):
        Digits(bold=True, pairs=True)
