"""From a recipe to the arguments of a trainer's config, and to the rewards it calls."""

from __future__ import annotations

import dataclasses
from typing import Any

from posttrain.planning.rewards import spec_of
from posttrain.recipe import Recipe
from posttrain.rewards.runner import RewardRunner


def training_arguments(recipe: Recipe, config_class: type, **changes: Any) -> Any:
    """The family's TRL config, filled from the recipe; `changes` win."""
    names = {f.name for f in dataclasses.fields(config_class) if f.init}
    return config_class(**{**recipe.trl_arguments(sorted(names)), **changes})


def policy_arguments(recipe: Recipe) -> dict[str, Any]:
    """What a recipe says outside `train` and `objective` that a `PolicyConfig` holds."""
    if recipe.rollout is None:
        raise ValueError(f"{recipe.path}: {recipe.method} needs a rollout section")
    return {
        "reward_weights": [reward.weight for reward in recipe.rewards],
        "num_generations_eval": 1,
        "eval_temperature": recipe.rollout.eval_temperature,
        "record_steps": list(recipe.output.record),
        "log_completions": False,  # the run folder keeps them, see observe/writer.py
    }


def reward_runner(recipe: Recipe) -> RewardRunner:
    """The recipe's rewards, each in processes of its own."""
    return RewardRunner([spec_of(reward) for reward in recipe.rewards])
