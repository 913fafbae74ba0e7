"""`data.filter` and `data.order`: which rows are kept, for every kind of data, and in which order."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_recipe import POLICY, SFT, Load, Refused

from posttrain.data import DataError, load_rows, survey
from posttrain.data.row_layout import Needs
from posttrain.data.row_order import Curriculum
from posttrain.recipe import load_recipe
from posttrain.recipe.data_sections import DataSection
from posttrain.run.continuing import VERDICTS, verdict
from posttrain.run.plan import make_plan

Make = Callable[..., DataSection]
RATES = [0.0, 0.5, None, 1.0, 0.25, 0.75]
ROWS: list[dict[str, Any]] = [{"prompt": f"{i}=", "pass_rate": rate} for i, rate in enumerate(RATES)]


@pytest.fixture
def section(tmp_path: Path) -> Make:
    def make(rows: list[dict[str, Any]] = ROWS, **keys: Any) -> DataSection:
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return DataSection.model_validate({"path": str(file), **keys})

    return make


def test_rows_are_kept_and_the_others_counted(section: Make) -> None:
    found = load_rows(section(filter="pass_rate > 0.1 and pass_rate < 0.9"))
    assert found.rows["prompt"] == ["1=", "4=", "5="]
    assert found.numbers == [2, 5, 6]
    assert found.last == 6
    assert found.counts.read == 6
    assert found.counts.in_words() == (
        "3 of 6 rows; dropped 3 (data.filter reads a missing value: 1, not kept by data.filter: 2)"
    )
    assert survey(section(filter="pass_rate > 0.1 and pass_rate < 0.9")).counts == found.counts


def test_a_missing_value_can_be_asked_for(section: Make) -> None:
    found = load_rows(section(filter="pass_rate is None or pass_rate == 1"))
    assert found.rows["prompt"] == ["2=", "3="]


def test_the_limit_counts_rows_that_are_kept_and_reads_no_further(section: Make) -> None:
    found = load_rows(section(filter="pass_rate > 0.1", limit=2))
    assert found.rows["prompt"] == ["1=", "3="]
    assert (found.last, found.counts.read) == (4, 4)
    shuffled = load_rows(section(filter="pass_rate > 0.1", shuffle=0))
    assert sorted(shuffled.rows["prompt"]) == ["1=", "3=", "4=", "5="]
    assert [ROWS[number - 1]["prompt"] for number in shuffled.numbers] == shuffled.rows["prompt"]


def test_pairs_marked_answers_and_texts_are_filtered_alike(section: Make) -> None:
    pairs = [{"prompt": "a", "chosen": "x" * n, "rejected": "y", "margin": n} for n in (2, 3, 4)]
    kept = section(pairs, filter="margin > 2 and len(chosen) < 4")
    found = load_rows(kept, needs=Needs(texts=("chosen", "rejected"), others=False))
    assert found.rows["chosen"] == ["xxx"]
    assert found.rows.column_names == ["prompt", "chosen", "rejected"]
    marked = load_rows(kept, needs=Needs(texts=("completion",), others=False, labels=True))
    assert (marked.rows["completion"], marked.rows["label"]) == (["xxx", "y"], [True, False])
    assert marked.counts.read == 6
    assert marked.counts.dropped == {"not kept by data.filter": 4}
    answers = [{"prompt": "a", "completion": text, "source": {"name": text}} for text in "xy"]
    found = load_rows(
        section(answers, filter="source.name == 'y'"), needs=Needs(("completion",), others=False)
    )
    assert found.rows["completion"] == ["y"]


@pytest.mark.parametrize(
    ("rows", "text", "said"),
    [
        (ROWS, "pas_rate > 0", "filter: no column 'pas_rate'; did you mean 'pass_rate'?"),
        ([{"prompt": "a"}], "pass_rate > 0", "`posttrain data difficulty RECIPE` measures it"),
        (
            ROWS,
            "pass_rate > '0'",
            "row 1: filter: \"pass_rate > '0'\" compares a number (0.0) with text ('0')",
        ),
        (ROWS, "len(prompt)", "row 1: filter: 'len(prompt)' is 2, not true or false"),
        (ROWS, "pass_rate > 2", "no rows to train on: 0 of 6 rows; dropped 6"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    section: Make, rows: list[dict[str, Any]], text: str, said: str
) -> None:
    with pytest.raises(DataError) as caught:
        load_rows(section(rows, filter=text))
    assert said in str(caught.value)


# In recipes


def recipe(load: Load, **data: Any) -> Any:
    if not Path("rows.jsonl").exists():
        Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    model = {"scratch": {"alphabet": "0123456789="}}
    rewards = [{"name": "repetition"}]
    base = {**POLICY, "data": {"path": "rows.jsonl", **data}}
    return load(base, model=model, rewards=rewards)


def test_the_plan_says_how_many_are_kept_and_refuses_none(load: Load) -> None:
    plan = make_plan(recipe(load, filter="pass_rate < 0.9"))
    assert plan.data[0] == (
        "training: 4 of 6 rows; dropped 2 (data.filter reads a missing value: 1, not kept by data.filter: 1)"
    )
    (refusal,) = make_plan(recipe(load, filter="pass_rate > 1")).refusals
    assert refusal.startswith("data: no row can be used: 0 of 6 rows; dropped 6")
    (refusal,) = make_plan(recipe(load, filter="passrate > 1")).refusals
    assert refusal.endswith("rows.jsonl: filter: no column 'passrate'; did you mean 'pass_rate'?")


def test_held_out_rows_are_filtered_by_their_own_filter_alone(load: Load) -> None:
    own = recipe(load, filter="pass_rate < 0.9", eval={"path": "rows.jsonl"})
    assert make_plan(own).data[1] == "held out: 6 of 6 rows"
    own = recipe(load, filter="pass_rate < 0.9", eval={"path": "rows.jsonl", "filter": "pass_rate == 1"})
    assert make_plan(own).data[1].startswith("held out: 1 of 6 rows; dropped 5")


def test_expressions_are_read_before_any_file(load: Load, refused: Refused) -> None:
    (line,) = refused(data={"filter": "open('x') and size > 1"})
    assert line.startswith(
        "r.yaml: data: 'filter': \"open('x')\" is not read here; an expression has columns"
    )
    (line,) = refused(data={"order": {"by": "size >", "first": "lowest"}})
    assert line.startswith("r.yaml: data.order: 'by': 'size >' cannot be read")
    (line,) = refused(data={"eval": {"order": {"by": "size", "first": "lowest"}}})
    assert "'order' inside 'eval' has no effect" in line


def test_a_resume_keeps_filter_and_order() -> None:
    for key in ("data.filter", "data.order.by", "data.order.first", "data.order.bands"):
        assert verdict(key, {}) == VERDICTS["data"] is not None
    assert verdict("data.eval.filter", {}) is None


# Order


def identity(size: int) -> range:
    return range(size)


def backwards(size: int) -> list[int]:
    return list(reversed(range(size)))


def test_an_order_by_hand() -> None:
    keys = (0.5, 1.0, None, 0.0, 1.0, 0.5, 0.25)
    assert Curriculum(keys, "highest", 3).order(identity) == [1, 4, 0, 5, 6, 3, 2]
    assert Curriculum(keys, "lowest", 3).order(identity) == [3, 6, 0, 5, 1, 4, 2]
    # drawn backwards: equal keys change places, and each band is turned round: (4 1) (5 0) (6 3) -> (1 4) (0 5) (3 6)
    assert Curriculum(keys, "highest", 3).order(backwards) == [1, 4, 0, 5, 3, 6, 2]
    assert Curriculum(keys, "highest", 2).order(backwards) == [5, 1, 4, 3, 6, 0, 2]
    assert sorted(Curriculum(keys, "lowest", 100).order(backwards)) == list(range(7))


def test_the_order_is_that_of_the_used_rows(section: Make) -> None:
    found = load_rows(
        section(filter="pass_rate != 0.5", order={"by": "1 - pass_rate", "first": "lowest", "bands": 2})
    )
    assert found.order == Curriculum((1.0, 0.0, 0.75, 0.25), "lowest", 2)
    found = load_rows(section(order={"by": "pass_rate", "first": "highest", "bands": 5}))
    assert found.order is not None
    assert found.order.keys == tuple(RATES)
    assert found.counts.notes[-1] == (
        "order: by pass_rate, highest first, in 5 bands of about 1 rows, from 0 to 1; 1 rows without a value come last"
    )


@pytest.mark.parametrize(
    ("by", "said"),
    [
        ("passrate", "order: by: no column 'passrate'; did you mean 'pass_rate'?"),
        ("prompt", "row 1: order: by: 'prompt' is '0=', not a number; where a column holds numbers as text"),
        ("len(prompt)", "order: by 'len(prompt)': all rows have 2, so it orders nothing"),
    ],
)
def test_an_order_that_cannot_be_is_refused(section: Make, by: str, said: str) -> None:
    with pytest.raises(DataError) as caught:
        load_rows(section(order={"by": by, "first": "lowest"}))
    assert said in str(caught.value)


def test_the_plan_says_the_order_and_who_has_none(load: Load) -> None:
    order = {"by": "pass_rate", "first": "highest", "bands": 2}
    plan = make_plan(recipe(load, order=order))
    assert any(line.startswith("order: by pass_rate, highest first, in 2 bands") for line in plan.data)
    # three steps of two prompts take all six
    assert not [line for line in plan.warnings if "data.order" in line]
    short = make_plan(load_recipe("r.yaml", ["train.max_steps=2"]))
    assert [line for line in short.warnings if "data.order" in line] == [
        "data.order: the run takes 4 of 6 prompts, so it ends in band 2 of 2 and never sees the lowest; "
        "raise train.max_steps, or lower data.limit"
    ]
    plan = make_plan(
        load({**SFT, "data": {"name": "sort", "order": {"by": "len(prompt)", "first": "lowest"}}})
    )
    assert any(line.startswith("data: 'order' does nothing with method 'sft'") for line in plan.refusals)
