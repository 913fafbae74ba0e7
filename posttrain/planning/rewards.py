"""The rewards of a recipe against what the dataset offers and what the method needs."""

from __future__ import annotations

from collections.abc import Collection

from posttrain.recipe import Recipe
from posttrain.recipe.sections import RewardSection
from posttrain.rewards.resolve import RewardSignature, RewardSpec, RewardSpecError, describe, faults
from posttrain.rewards.signature import PROVIDED, provided_instead


def spec_of(reward: RewardSection) -> RewardSpec:
    return RewardSpec.of(reward.model_dump())


def reward_faults(recipe: Recipe, columns: Collection[str] | None) -> list[str]:
    """A sentence for each reward that cannot be found or called; `columns` None: the dataset is not at hand.

    No code of the user's runs: what only a loaded reward shows is left to `plan --try` (`reward_lines` says so).
    """
    signatures: list[RewardSignature] = []
    found: list[str] = []
    for position, reward in enumerate(recipe.rewards):
        try:
            signatures.append(describe(spec_of(reward)))
        except RewardSpecError as error:
            found.append(f"rewards[{position}]: {error}")
            continue
        if columns is not None:
            found += [f"rewards[{position}]: {fault}" for fault in faults(spec_of(reward), sorted(columns))]
    judged = len(signatures) == len(recipe.rewards) and all(signature.known for signature in signatures)
    if judged and recipe.needs_answers() and not any(signature.yields_answers for signature in signatures):
        found.append(
            f"rewards: method '{recipe.method}' compares final answers, and none of the rewards says what a "
            "completion's answer is; use math_answer, or decorate your own with posttrain.rewards.hooks.yields_answers"
        )
    if recipe.rewards and all(reward.weight == 0 for reward in recipe.rewards):
        found.append("rewards: every weight is 0, so nothing would be learned; give one a weight")
    for name in sorted(PROVIDED.intersection(recipe.data.columns) if recipe.rewards else ()):
        found.append(
            f"data.columns: rewards are given {name!r} by the run, so no column of the data can have that name; "
            "choose another"
        )
    return found


def reward_warnings(recipe: Recipe, columns: Collection[str] | None) -> list[str]:
    """Data columns that rewards will not see, because the run has values of the same name."""
    mapped = recipe.data.columns  # refused above
    lost = sorted(PROVIDED.intersection(columns or ()).difference(mapped)) if recipe.rewards else []
    return [f"data: {provided_instead(lost)} (data.columns)"] if lost else []


def reward_lines(recipe: Recipe) -> list[str]:
    """One line a reward: its name, weight, and the columns it reads."""
    lines = []
    for reward in recipe.rewards:
        text = f"{spec_of(reward).title} x {reward.weight:g}"
        try:
            signature = describe(spec_of(reward))
        except RewardSpecError:
            signature = None
        if signature is not None and signature.columns_needed:
            text += f", reads {', '.join(signature.columns_needed)}"
        text += f"; {reward.timeout_s:g} s a call, then {reward.on_error}"
        if signature is not None and not signature.known:
            text += "; its source does not show what it asks for: posttrain plan --try loads it and looks"
        lines.append(text)
    return lines
