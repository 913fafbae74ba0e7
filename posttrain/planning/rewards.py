"""The rewards of a recipe against what the dataset offers and the method needs."""

from __future__ import annotations

from posttrain.recipe import Recipe


def reward_faults(recipe: Recipe, columns: set[str] | None) -> list[str]:
    return []


def reward_lines(recipe: Recipe) -> list[str]:
    return [f"{reward.label or reward.name} x {reward.weight:g}" for reward in recipe.rewards]
