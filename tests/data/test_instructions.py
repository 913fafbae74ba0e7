"""The instructions task: rows that IFEval's checkers can judge, and a test split of unseen combinations."""

from __future__ import annotations

import json

import pytest

from posttrain.data.instructions import KINDS, MOST_TOGETHER, TOPICS, Instructions, combinations


def kinds_of(row) -> frozenset[str]:
    return frozenset(row["instruction_id_list"])


def test_the_splits_share_neither_combination_nor_topic() -> None:
    task = Instructions(size=3000, held_out=400)
    train = list(task.rows("train", completions=False))
    test = list(task.rows("test", completions=False))
    assert (len(train), len(test)) == (3000, 400)
    assert not {kinds_of(row) for row in train} & {kinds_of(row) for row in test}
    # but each kind is trained, alone as well
    assert {name for row in train for name in kinds_of(row)} == {kind.name for kind in KINDS}
    assert {name for row in test for name in kinds_of(row)} <= {kind.name for kind in KINDS}
    met = [
        {topic for topic in TOPICS if any(topic in row["prompt"].partition(".")[0] for row in rows)}
        for rows in (train, test)
    ]
    assert not met[0] & met[1]


def test_rows_are_the_same_each_time_and_another_seed_gives_others() -> None:
    rows = list(Instructions(size=20).rows("train", completions=False))
    assert rows == list(Instructions(size=20).rows("train", completions=False))
    assert rows != list(Instructions(size=20, seed=1).rows("train", completions=False))


def test_what_cannot_be_kept_together_is_not_asked_together() -> None:
    for kinds in combinations():
        groups = [kind.group for kind in kinds]
        assert len(set(groups)) == len(kinds) <= MOST_TOGETHER
        assert not {"case", "language"} <= set(groups)
        assert not {"form", "quotes"} <= set(groups)


def test_only_the_kinds_that_are_named() -> None:
    task = Instructions(
        size=200, kinds=("no_comma", "english_lowercase", "number_words", "keywords:existence")
    )
    named = {name for row in task.rows("train", completions=False) for name in row["instruction_id_list"]}
    assert {name.partition(":")[2] for name in named} == {
        "no_comma",
        "english_lowercase",
        "number_words",
        "existence",
    }


def test_refusals() -> None:
    with pytest.raises(ValueError, match="no kind 'no_commas'"):
        Instructions(kinds=("no_commas",))
    with pytest.raises(ValueError, match="none are left for a test split"):
        Instructions(kinds=("no_comma", "number_words"))
    with pytest.raises(ValueError, match="prompts only"):
        list(Instructions().rows("train", completions=True))


def test_settings_belong_to_their_instruction() -> None:
    row = next(
        r for r in Instructions().rows("train", completions=False) if "keywords:existence" in kinds_of(r)
    )
    settings = json.loads(row["kwargs"])[row["instruction_id_list"].index("keywords:existence")]
    assert all(f'"{word}"' in row["prompt"] for word in settings["keywords"])


def test_at_least_so_many_words_have_room_in_every_prompt() -> None:
    for row in Instructions(size=400, at_least=10).rows("train", completions=False):
        settings = json.loads(row["kwargs"])
        assert row["instruction_id_list"][-1] == "length_constraints:number_words"
        assert settings[-1] == {"relation": "at least", "num_words": 10}
        assert row["prompt"].endswith("Use at least 10 words.")
        fewest = [
            one["num_words"]
            for one in settings[:-1]
            if one.get("relation") == "less than" and "num_words" in one
        ]
        assert all(count >= 15 for count in fewest)
