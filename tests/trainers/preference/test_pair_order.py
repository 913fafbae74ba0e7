"""A curriculum over pairs: those that are left are trained on in its order, in every epoch, also after a resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from small_recipe import Load

from posttrain.data.row_order import Curriculum
from posttrain.run.plan import make_plan
from posttrain.trainers.seam.ordered_rows import OrderedRows, order_of, with_order_keys

TRAIN: dict[str, Any] = {"per_device_train_batch_size": 2, "use_cpu": True, "gradient_checkpointing": False}


def pairs(count: int = 8) -> list[dict[str, Any]]:
    """Each with a chosen answer of its own; the fourth has a prompt that fills what is read."""
    return [
        {
            "prompt": ("1" * 40 if i == 3 else str(i)) + ">",
            "chosen": str(i) * 2,
            "rejected": str(9 - i),
            "margin_of": (3 * i % count) / count,
        }
        for i in range(count)
    ]


def test_numbers_go_along_with_the_rows_that_are_left() -> None:
    rows = Dataset.from_list([{"a": i} for i in range(4)])
    curriculum = Curriculum((0.5, None, 0.1, 0.9), "lowest", 2)
    left = with_order_keys(rows, curriculum).filter(lambda row: row["a"] != 2)
    order = order_of(left, curriculum)
    assert order is not None
    assert order.keys == (0.5, None, 0.9)
    for epoch in range(3):
        assert list(OrderedRows(order, seed=0, epoch=lambda e=epoch: e)) == [0, 2, 1]
    assert with_order_keys(rows, None) is rows


def test_each_epoch_draws_its_own_order_within_bands() -> None:
    curriculum = Curriculum(tuple(float(i) for i in range(20)), "lowest", 2)
    epochs = [list(OrderedRows(curriculum, seed=1, epoch=lambda e=e: e)) for e in (0, 1, 0)]
    assert epochs[0] == epochs[2] != epochs[1]
    assert all(set(one[:10]) == set(range(10)) for one in epochs)
    assert list(OrderedRows(curriculum, seed=2, epoch=lambda: 0)) != epochs[0]


@pytest.mark.parametrize("method", ["simpo", "reward_model"])
def test_a_recipe_is_trained_in_order_and_resumed_exactly(load: Load, method: str) -> None:
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs()))
    own = {"max_length": 24} if method == "simpo" else {}
    recipe = load(
        method=method,
        objective=None,
        rewards=None,
        rollout=None,
        data={
            "path": "pairs.jsonl",
            "name": None,
            "args": {},
            "order": {"by": "margin_of", "first": "highest", "bands": 2},
        },
        train={**TRAIN, **own, "max_steps": 6},
        output={"save_steps": 1, "save_total_limit": None, "report_to": []},
    )
    assert make_plan(recipe).refusals == []

    def run(folder: str, checkpoint: str | None = None) -> tuple[Any, list[list[float]]]:
        trainer = recipe.spec.load_trainer().from_recipe(recipe, output_dir=folder)
        keys = trainer.curriculum.keys
        by_tokens = {
            tuple(ids): key for ids, key in zip(trainer.train_dataset["chosen_ids"], keys, strict=True)
        }
        seen: list[list[float]] = []
        collate = trainer.data_collator

        def noted(rows: Any) -> Any:
            seen.append([by_tokens[tuple(row["chosen_ids"])] for row in rows])
            return collate(rows)

        trainer.data_collator = noted
        trainer.train(resume_from_checkpoint=checkpoint)
        return trainer, seen

    whole, seen = run("whole")
    count = len(whole.train_dataset)
    assert count == (7 if method == "simpo" else 8)
    per_epoch = -(-count // 2)
    highest = sorted(whole.curriculum.keys, reverse=True)
    first = [key for batch in seen[:per_epoch] for key in batch]
    assert sorted(first[: count // 2], reverse=True) == highest[: count // 2]
    assert sorted(first, reverse=True) == highest
    resumed, again = run("resumed", "whole/checkpoint-5")
    assert seen[5] in again
    assert again == seen[-len(again) :]  # a loader reads one batch ahead
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_plan_tells_of_a_run_that_ends_before_its_rows(load: Load) -> None:
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs(40)[:9] * 4))
    data = {"path": "pairs.jsonl", "name": None, "args": {}, "order": {"by": "margin_of", "first": "lowest"}}
    base = {"objective": None, "rewards": None, "rollout": None, "data": data}
    found = make_plan(load(method="dpo", train={**TRAIN, "max_steps": 4}, **base)).warnings
    assert any(
        "takes 8 of 36 pairs, so it ends in band 3 of 10 and never sees the highest" in w for w in found
    )
    staged = make_plan(load(method="drift", train={**TRAIN, "max_steps": 4}, **base)).refusals
    assert any("data: 'order' does nothing with method 'drift'" in line for line in staged)
