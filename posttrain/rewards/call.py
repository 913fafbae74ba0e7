"""Calling one reward function on one batch: in a worker, or, where it cannot be shipped, in this process."""

from __future__ import annotations

import asyncio
import inspect
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from posttrain.rewards.journal import Journal, NotHere, RewardOutputError, trainer_state_of
from posttrain.rewards.resolve import RewardSpec, describe_loaded, load_function
from posttrain.rewards.signature import RewardSignature


@dataclass(frozen=True)
class Call:
    """One group of completions (or one completion), and what goes with it.

    completions    text, or messages where the reward reads those
    columns        the data's and the run's, one value a completion
    trainer_state  plain values of the trainer's state, where the reward takes it
    objects        those of log_extra, log_metric and environments that it is to be given
    """

    completions: list[Any]
    columns: dict[str, list[Any]]
    trainer_state: dict[str, Any] | None = None
    objects: tuple[str, ...] = ()


@dataclass(frozen=True)
class Judged:
    """What one call gave: values, final answers where the reward yields them, and what it logged."""

    values: list[float | None]
    answers: list[str | None] | None
    extra: dict[str, list[Any]] = field(default_factory=dict)
    metrics: dict[str, list[float]] = field(default_factory=dict)


def signature_handler(
    name: str, base_dir: str, args: dict[str, Any], completions_as: Any
) -> Callable[[None], RewardSignature]:
    """The factory of a worker that says what a reward asks for, once it is loaded."""
    signature = describe_loaded(
        RewardSpec(name, args, completions_as=completions_as), load_function(name, base_dir)
    )
    return lambda _: signature


def reward_handler(
    name: str, base_dir: str, args: dict[str, Any], function: bytes | None
) -> Callable[[Call], Judged]:
    """The factory a worker runs: loads the reward once, then answers calls."""
    reward = pickle.loads(function) if function is not None else load_function(name, base_dir)
    return handler_of(reward, args)


def handler_of(reward: Callable[..., Any], args: Mapping[str, Any]) -> Callable[[Call], Judged]:
    """Calls `reward` and checks what it returns; also its final answers, if it yields any."""
    hooks = vars(reward) if hasattr(reward, "__dict__") else {}
    extractor = hooks.get("answers")
    extractor_args = _accepted(extractor, args) if extractor is not None else {}
    if "prepare" in hooks:
        hooks["prepare"]()

    loop = asyncio.Runner()  # one loop for all calls: an async reward may keep its connections

    def handle(call: Call) -> Judged:
        journal = Journal(len(call.completions))
        result = reward(completions=call.completions, **call.columns, **_objects(call, journal), **args)
        if inspect.isawaitable(result):
            result = loop.run(_awaited(result))
        values = numbers(result, len(call.completions))
        answers = None
        if extractor is not None:
            answers = _texts(extractor(call.completions, **extractor_args), len(call.completions))
        return Judged(values, answers, journal.extra, journal.metrics)

    return handle


def _objects(call: Call, journal: Journal) -> dict[str, Any]:
    """What TRL hands over beside columns, as far as the reward takes it."""
    here = {"log_extra": journal.log_extra, "log_metric": journal.log_metric, "environments": NotHere()}
    objects = {name: here[name] for name in call.objects}
    if call.trainer_state is not None:
        objects["trainer_state"] = trainer_state_of(call.trainer_state)
    return objects


async def _awaited(result: Any) -> Any:
    return await result


def _accepted(function: Callable[..., Any], args: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the reward's settings that another function takes too."""
    parameters = inspect.signature(function).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return dict(args)
    return {key: value for key, value in args.items() if key in parameters}


def numbers(result: Any, size: int) -> list[float | None]:
    """One float or None a completion, from whatever numbers a reward returns (ints, bools, numpy, 0-d tensors)."""
    if isinstance(result, str | bytes | Mapping) or not hasattr(result, "__iter__"):
        raise RewardOutputError(f"returned {_shown(result)}; a list of {size} numbers or None is expected")
    values = list(result)
    if len(values) != size:
        raise RewardOutputError(f"returned {len(values)} values for {size} completions")
    return [_number(value, position) for position, value in enumerate(values)]


def _number(value: Any, position: int) -> float | None:
    if value is None:
        return None
    if isinstance(value, str | bytes) or not hasattr(value, "__float__"):
        raise RewardOutputError(
            f"returned {_shown(value)} at position {position}; a number or None is expected"
        )
    try:
        return float(value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


def _texts(answers: Sequence[Any], size: int) -> list[str | None]:
    answers = list(answers)
    if len(answers) != size:
        raise RewardOutputError(f"its answers hook returned {len(answers)} values for {size} completions")
    for position, answer in enumerate(answers):
        if answer is not None and not isinstance(answer, str):
            raise RewardOutputError(
                f"its answers hook returned {_shown(answer)} at position {position}; not text"
            )
    return answers


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
