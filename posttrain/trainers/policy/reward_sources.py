"""Where each reward of a trainer is judged: in the runner's processes, or, as TRL does it, where the trainer is.

Functions go to the `RewardRunner`. Reward models (modules, or names of models) and whatever needs the environments of
a run stay with TRL, which judges a process's own responses one by one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from posttrain.rewards import drift_reward
from posttrain.rewards.call import numbers
from posttrain.rewards.drift_reward import DriftReward
from posttrain.rewards.messages import messages_of, text_of
from posttrain.rewards.model_reward import ModelReward
from posttrain.rewards.resolve import BUILT_IN, RewardSpec, describe, load_reward
from posttrain.rewards.runner import RewardRunner
from posttrain.rewards.signature import RUNTIME_OBJECTS, RewardSignature, RewardSpecError, needs_environments
from posttrain.trainers.seam.config import PolicyConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RewardSources:
    """
    runner     scores the functions; None where there are none
    functions  what TRL's constructor gets, in the order given: its own sources, stand-ins for the runner's
    weights    those that the specs name; None where all are 1
    models     position among `functions` -> a reward model that is asked here, not by TRL
    drifts     position -> drift_penalty, which reads the policy and is made here too
    """

    runner: RewardRunner | None
    functions: list[Any]
    weights: list[float] | None
    models: dict[int, ModelReward] = field(default_factory=dict)
    drifts: dict[int, DriftReward] = field(default_factory=dict)


def reward_sources(reward_funcs: Any, args: PolicyConfig, *, has_environments: bool) -> RewardSources:
    """Raises RewardSpecError for a reward that is neither."""
    if isinstance(reward_funcs, RewardRunner):
        return _all_of(reward_funcs)
    given = reward_funcs if isinstance(reward_funcs, list | tuple) else [reward_funcs]
    given = [] if reward_funcs is None else list(given)
    if not given and not has_environments:  # TRL wants one
        return RewardSources(None, [no_reward], None)
    models = {place: one for place, one in enumerate(given) if isinstance(one, ModelReward)}
    specs = [
        None if isinstance(one, ModelReward) or is_reward_model(one) else RewardSpec.of(one) for one in given
    ]
    drifts = {
        place: DriftReward.of(spec)
        for place, spec in enumerate(specs)
        if spec is not None and spec.name == drift_reward.NAME
    }
    local = [spec is not None and _stays_here(spec, has_environments) for spec in specs]
    run = [
        spec
        for place, (spec, here) in enumerate(zip(specs, local, strict=True))
        if spec is not None and not here and place not in drifts
    ]
    runner = None
    if run:
        runner = RewardRunner(
            run,
            timeout_s=args.reward_timeout_s,
            on_error=args.reward_on_error,  # type: ignore[arg-type]  # checked by the config
            workers=args.reward_workers,
        )
    names = iter(runner.names if runner is not None else [])
    functions: list[Any] = []
    for place, (one, spec, here) in enumerate(zip(given, specs, local, strict=True)):
        if isinstance(one, ModelReward):
            functions.append(stand_in(one.title))
        elif place in drifts:
            functions.append(stand_in(drifts[place].title))
        elif spec is None:
            functions.append(one)
        elif here:
            functions.append(_here(spec))
        else:
            functions.append(stand_in(next(names)))
    weighted = [models.get(place, spec) for place, spec in enumerate(specs)]
    weights = [1.0 if one is None else one.weight for one in weighted]
    return RewardSources(
        runner, functions, weights if any(weight != 1.0 for weight in weights) else None, models, drifts
    )


def _all_of(runner: RewardRunner) -> RewardSources:
    weights = runner.weights if any(weight != 1.0 for weight in runner.weights) else None
    return RewardSources(runner, [stand_in(name) for name in runner.names], weights)


def is_reward_model(given: Any) -> bool:
    """A module, or text that names a saved model and no function: a folder with a config.json, or owner/name."""
    if isinstance(given, nn.Module):
        return True
    if not isinstance(given, str) or given in BUILT_IN or ":" in given or given.endswith(".py"):
        return False
    return Path(given, "config.json").is_file() or given.count("/") == 1


# ---- stand-ins: what TRL holds for a reward that the runner scores


def stand_in(name: str) -> Callable[..., Any]:
    def scored_in_its_own_process(**_: Any) -> list[float]:
        raise RuntimeError(f"reward {name!r} is scored by the RewardRunner, not called here")

    scored_in_its_own_process.__name__ = name
    scored_in_its_own_process.is_stand_in = True  # type: ignore[attr-defined]  # functions take attributes
    return scored_in_its_own_process


def judged_by_trl(functions: Sequence[Any]) -> list[int]:
    """The positions of the rewards that are no stand-ins; an environment's own, which TRL appends, among them."""
    return [
        i for i, one in enumerate(functions) if isinstance(one, nn.Module) or not hasattr(one, "is_stand_in")
    ]


def judge_as_trl(
    trainer: Any, scored_by_trl: Callable[..., Tensor], positions: list[int], *batch: list[Any]
) -> Tensor:
    """TRL's own way for some of the trainer's rewards. (B, len(positions)) over all ranks. Environments are told their
    responses before, for a `get_reward(self, messages)`."""
    trainer.turns.tell(trainer.environments, batch[2])
    whole = trainer.reward_funcs, trainer.reward_processing_classes, trainer.reward_func_names
    # One that judges everything keeps TRL from calling a response unjudged that the runner has judged.
    trainer.reward_funcs = [*(whole[0][k] for k in positions), _zeros]
    trainer.reward_processing_classes = [*(whole[1][k] for k in positions), None]
    trainer.reward_func_names = [*(whole[2][k] for k in positions), "zeros"]
    try:
        found = scored_by_trl(*batch)[:, :-1]
        trainer.turns.note_unscored()
        return found
    finally:
        trainer.reward_funcs, trainer.reward_processing_classes, trainer.reward_func_names = whole


def _zeros(completions: Sequence[Any], **_: Any) -> list[float]:
    return [0.0] * len(completions)


def no_reward(completions: Sequence[Any], **_: Any) -> list[float]:
    """In the place of the rewards that a method has no need of."""
    return [0.0] * len(completions)


# ---- rewards that need the environments


def _stays_here(spec: RewardSpec, has_environments: bool) -> bool:
    signature = describe(spec)
    if "environments" in signature.objects_needed and not has_environments:
        raise RewardSpecError(needs_environments(spec.name))
    return has_environments and "environments" in signature.objects


def _here(spec: RewardSpec) -> Callable[..., Any]:
    """The function as TRL calls it, given what it asks for and no more."""
    signature, function = describe(spec), load_reward(spec)
    log.warning(
        "reward %r reads the environments, so it runs in the training process: without a time limit, and with the "
        "responses of one process at a time",
        spec.title,
    )

    def judge(**given: Any) -> list[float | None]:
        return numbers(function(**_asked_for(signature, given)), len(given["completions"]))

    async def judge_async(**given: Any) -> list[float | None]:
        return numbers(await function(**_asked_for(signature, given)), len(given["completions"]))

    chosen = judge_async if signature.is_async else judge
    chosen.__name__ = spec.title
    return chosen


def _asked_for(signature: RewardSignature, given: dict[str, Any]) -> dict[str, Any]:
    completions = given["completions"]
    read = text_of if signature.completions_as == "text" else messages_of
    columns = {
        name: values for name, values in given.items() if name not in ("completions", *RUNTIME_OBJECTS)
    }
    columns["completion_tokens"] = [len(ids) for ids in given["completion_ids"]]
    return {
        "completions": [read(one) for one in completions],
        **{name: columns[name] for name in signature.wanted(columns)},
        **{name: given[name] for name in RUNTIME_OBJECTS if name in given and signature.takes(name)},
        **signature.args,
    }
