"""A small valid recipe to break in one place at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from posttrain.recipe import Recipe, RecipeError, load_recipe

POLICY: dict[str, Any] = {
    "method": "dapo",
    "model": {"scratch": {"alphabet": "0123456789>"}},
    "data": {"name": "sort", "args": {"size": 64, "held_out": 16}},
    "rewards": [{"name": "exact_match"}],
    "objective": {"clip_high": 0.28},
    "rollout": {"group_size": 4, "max_new_tokens": 9},
    "train": {"max_steps": 3, "learning_rate": 1e-4, "per_device_train_batch_size": 8},
}
SFT: dict[str, Any] = {
    "method": "sft",
    "model": {"scratch": {}},
    "data": {"name": "sort", "args": {"size": 64, "teacher_accuracy": 0.4}},
    "train": {"max_steps": 3},
}

Load = Callable[..., Recipe]
Refused = Callable[..., list[str]]


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with mappings merged into its sections; None takes a section away."""
    out = copy.deepcopy(base)
    for key, value in changes.items():
        if value is None:
            out.pop(key, None)
        elif isinstance(value, dict) and isinstance(out.get(key), dict):
            out[key] |= value
        else:
            out[key] = value
    return out


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """load(base=POLICY, sets=[...], **sections): the recipe r.yaml of an empty current folder."""
    monkeypatch.chdir(tmp_path)

    def run(base: dict[str, Any] = POLICY, sets: list[str] | None = None, **changes: Any) -> Recipe:
        Path("r.yaml").write_text(yaml.safe_dump(merged(base, changes), sort_keys=False))
        return load_recipe("r.yaml", sets or [])

    return run


@pytest.fixture
def refused(load: Load) -> Refused:
    """The lines with which the recipe is refused."""

    def run(base: dict[str, Any] = POLICY, sets: list[str] | None = None, **changes: Any) -> list[str]:
        with pytest.raises(RecipeError) as caught:
            load(base, sets, **changes)
        return list(caught.value.problems)

    return run
