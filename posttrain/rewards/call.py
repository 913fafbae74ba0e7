"""Calling one reward function on one batch: in a worker, or, where it cannot be shipped, in this process."""

from __future__ import annotations

import asyncio
import inspect
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.rewards.resolve import load_function


class RewardOutputError(ValueError):
    """A reward returned something else than one number or None a completion."""


@dataclass(frozen=True)
class Call:
    """One group of completions (or one completion) and the columns that go with it."""

    completions: list[str]
    columns: dict[str, list[Any]]


@dataclass(frozen=True)
class Judged:
    values: list[float | None]
    answers: list[str | None] | None


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
        result = reward(completions=call.completions, **call.columns, **args)
        if inspect.isawaitable(result):
            result = loop.run(_awaited(result))
        values = _numbers(result, len(call.completions))
        if extractor is None:
            return Judged(values, None)
        return Judged(values, _texts(extractor(call.completions, **extractor_args), len(call.completions)))

    return handle


async def _awaited(result: Any) -> Any:
    return await result


def _accepted(function: Callable[..., Any], args: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the reward's settings that another function takes too."""
    parameters = inspect.signature(function).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return dict(args)
    return {key: value for key, value in args.items() if key in parameters}


def _numbers(result: Any, size: int) -> list[float | None]:
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
