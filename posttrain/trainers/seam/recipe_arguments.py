"""From a recipe to the arguments of a trainer's config, and to the rewards it calls."""

from __future__ import annotations

import dataclasses
from typing import Any

from posttrain.planning.rewards import model_of, spec_of
from posttrain.recipe import Recipe
from posttrain.rewards.model_reward import ModelReward
from posttrain.rewards.resolve import RewardSpec


def training_arguments(recipe: Recipe, config_class: type, **changes: Any) -> Any:
    """The family's TRL config, filled from the recipe; `changes` win."""
    names = {f.name for f in dataclasses.fields(config_class) if f.init}
    given = recipe.trl_arguments(sorted(names))
    if lost := sorted(
        set(given).intersection(recipe.train.changed()) - names
    ):  # the method's `faults` name them first
        raise ValueError(f"{recipe.path}: train: {', '.join(lost)} mean nothing to method '{recipe.method}'")
    return config_class(**{**{name: value for name, value in given.items() if name in names}, **changes})


def policy_arguments(recipe: Recipe) -> dict[str, Any]:
    """What a recipe says outside `train` and `objective` that a `PolicyConfig` holds."""
    if recipe.rollout is None:
        raise ValueError(f"{recipe.path}: {recipe.method} needs a rollout section")
    return {
        "reward_weights": [reward.weight for reward in recipe.rewards] or None,
        **({"max_tool_calling_iterations": recipe.rollout.max_turns - 1} if recipe.has_tools else {}),
        "num_generations_eval": 1,
        "eval_temperature": recipe.rollout.eval_temperature,
        "record_steps": list(recipe.output.record),
        "log_completions": False,  # the run folder keeps them, see observe/writer.py
    }


def rewards_of(recipe: Recipe) -> list[RewardSpec | ModelReward]:
    """The recipe's rewards: functions, each to run in processes of its own, and models."""
    return [spec_of(reward) if reward.model is None else model_of(reward) for reward in recipe.rewards]
