"""A curriculum's order of prompts: TRL's batches of it, anew in each epoch, the same after a resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from small_recipe import Load

from posttrain.data.row_order import Curriculum
from posttrain.trainers.policy.epoch_sampler import EpochRepeatSampler

KEYS = (0.0, 1.0, 0.5, 0.25, None, 1.0, 0.75, 0.0, 0.5)
EASY_FIRST = Curriculum(KEYS, "highest", 2)


def sampler(epoch: int, *, shuffle: bool = True, seed: int = 3) -> EpochRepeatSampler:
    return EpochRepeatSampler(
        data_source=KEYS,
        mini_repeat_count=2,
        batch_size=3,
        repeat_count=2,
        shuffle=shuffle,
        seed=seed,
        epoch=lambda: epoch,
        curriculum=EASY_FIRST,
    )


def test_prompts_come_in_its_order_in_batches_as_ever() -> None:
    order = sampler(0).order(0)
    batches = [order[place : place + 3] for place in (0, 3, 6)]
    expected = [row for batch in batches for _ in range(2) for row in batch for _ in range(2)]
    assert list(sampler(0)) == expected
    assert set(order[:4]) <= {1, 5, 6, 2, 8}
    assert set(order[4:8]) <= {2, 8, 3, 0, 7}
    assert order[8] == 4
    assert sampler(0, shuffle=False).order(0) == [1, 5, 6, 2, 8, 3, 0, 7, 4]


def test_each_epoch_has_an_order_of_its_own_wherever_it_is_begun() -> None:
    orders = [sampler(0).order(epoch) for epoch in range(6)]
    assert len({tuple(order) for order in orders}) > 3
    assert len({order[3] for order in orders}) > 1
    # the band ends among equal rows, of which now one is in it and now the other
    assert {row for order in orders for row in order[:4]} == {1, 2, 5, 6, 8}
    one = sampler(0)
    list(one)  # an epoch that was gone through, and one that was resumed into
    assert one.order(1) == sampler(1).order(1) == orders[1]
    assert list(sampler(1))[::2][:3] == orders[1][:3]
    assert sampler(0, seed=4).order(0) != orders[0]


def test_a_recipe_is_trained_in_order_and_resumed_exactly(load: Load) -> None:
    rows = [{"prompt": f"{i}>", "answer": str(i), "pass_rate": (7 * i % 8) / 8} for i in range(8)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    order = {"by": "pass_rate", "first": "highest", "bands": 2}
    recipe = load(
        data={"path": "rows.jsonl", "name": None, "args": {}, "order": order},
        method="grpo",
        objective=None,
        rollout={"group_size": 2, "max_new_tokens": 4},
        train={
            "max_steps": 7,
            "per_device_train_batch_size": 4,
            "use_cpu": True,
            "gradient_checkpointing": False,
        },
        output={"save_steps": 1, "save_total_limit": None, "report_to": []},
    )

    def run(folder: str, checkpoint: str | None = None) -> tuple[Any, list[list[str]]]:
        trainer = recipe.spec.load_trainer().from_recipe(recipe, output_dir=folder)
        seen: list[list[str]] = []
        score = trainer.judge.score

        def noted(*arguments: Any, **named: Any) -> Any:
            scored = score(*arguments, **named)
            seen.append(scored.prompts[::2])
            return scored

        trainer.judge.score = noted
        trainer.train(resume_from_checkpoint=checkpoint)
        return trainer, seen

    whole, seen = run("whole")
    rates = {row["prompt"]: row["pass_rate"] for row in rows}
    for epoch in (seen[:4], seen[4:]):  # four steps of two prompts are an epoch
        values = [rates[prompt] for batch in epoch for prompt in batch]
        assert min(values[:4]) >= 0.5
        assert max(values[4:] or [0.0]) < 0.5
    resumed, again = run("resumed", "whole/checkpoint-5")
    assert again == seen[5:]
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)
