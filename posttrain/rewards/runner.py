"""Runs reward functions on whole groups, each in worker processes of its own, with a time limit.

What a reward does wrong is either raised with its traceback, or counted and left unjudged; it is never a zero.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from posttrain.rewards.resolve import RewardSpec, describe
from posttrain.rewards.round import REASONS, Batch, Reward, RewardError, RewardRound
from posttrain.rewards.signature import (
    RUNTIME_OBJECTS,
    RewardSignature,
    RewardSpecError,
    needs_environments,
    provided_instead,
)
from posttrain.rewards.worker_pool import Outcome, WorkerPool, WorkerStartError, run_pools, start_pools

log = logging.getLogger(__name__)
T = TypeVar("T")

__all__ = ["REASONS", "RewardError", "RewardRunner", "Scores"]


@dataclass(frozen=True)
class Scores:
    """What the rewards made of B completions; K reward functions.

    values   B lists of K: a number, or None where that function could not judge
    answers  the final answers (B) of the first reward that yields them, or None if no reward does
    counts   for each reward, how many completions went unjudged, by reason (REASONS)
    seconds  for each reward, the time its calls took, added up over workers
    extra    columns that rewards logged (TRL's log_extra), B values each, None where a completion got none
    metrics  numbers that rewards logged (TRL's log_metric), one a call
    """

    values: list[list[float | None]]
    answers: list[str | None] | None
    counts: dict[str, dict[str, int]]
    seconds: dict[str, float] = field(default_factory=dict)
    extra: dict[str, list[Any]] = field(default_factory=dict)
    metrics: dict[str, list[float]] = field(default_factory=dict)


class RewardRunner:
    """Scores completions with several rewards; use it as a context manager, or call `close`.

    specs      rewards: names, RewardSpec, mappings of its fields, or callables
    timeout_s  limit of one call on one group, in seconds; not counting the start of a worker
    on_error   "raise": the first failure stops the run. "skip": it is counted, its completions go unjudged
    workers    processes of each reward; None: half the processors, four at most
    base_dir   the folder that path/file.py names start from

    Workers start when first needed (`start` does it early), import no torch of their own accord, and are replaced
    after a crash or a kill. A callable that cannot be sent to a worker runs in this process, without a time limit;
    a warning says so once.
    """

    def __init__(
        self,
        specs: Sequence[Any],
        *,
        timeout_s: float = 30.0,
        on_error: Literal["raise", "skip"] = "raise",
        workers: int | None = None,
        base_dir: str | Path = ".",
        startup_timeout_s: float = 300.0,
    ):
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error is {on_error!r}; choose 'raise' or 'skip'")
        if workers is not None and workers < 1:
            raise ValueError(f"workers is {workers}; at least 1 is needed")
        given = [RewardSpec.of(spec) for spec in specs]
        self.names = _distinct([spec.title for spec in given])
        count = workers or max(1, min(4, (os.cpu_count() or 1) // 2))
        self._rewards = [
            Reward(
                name,
                spec,
                _described(spec, base_dir, startup_timeout_s),
                str(Path(base_dir).resolve()),
                timeout_s if spec.timeout_s is None else spec.timeout_s,
                on_error if spec.on_error is None else spec.on_error,
                count,
                startup_timeout_s,
            )
            for name, spec in zip(self.names, given, strict=True)
        ]
        for reward in self._rewards:
            if "environments" in reward.signature.objects_needed:
                raise RewardSpecError(needs_environments(reward.spec.name))
        self.weights = [spec.weight for spec in given]
        self._said: set[str] = set()  # columns whose loss to the run's own has been warned of

    @property
    def signatures(self) -> list[RewardSignature]:
        return [reward.signature for reward in self._rewards]

    @property
    def yields_answers(self) -> bool:
        return any(reward.signature.yields_answers for reward in self._rewards)

    def start(self) -> None:
        """Starts a worker for each reward and waits, so that a reward that cannot be loaded is known early."""
        self._with_workers(lambda: start_pools(self._pools()))

    def score(
        self,
        completions: Sequence[Any],
        *,
        columns: Mapping[str, Sequence[Any]] | None = None,
        group_size: int,
        prompts: Sequence[Any] | None = None,
        completion_ids: Sequence[Sequence[int]] | None = None,
        completion_tokens: Sequence[int] | None = None,
        messages: Sequence[Any] | None = None,
        trainer_state: Mapping[str, Any] | None = None,
        has_environments: bool = False,
        of_images: bool = False,
    ) -> Scores:
        """Scores B completions in groups of `group_size` neighbours; every reward sees whole groups.

        columns        the data's, B values each; `prompts`, `completion_ids`, `completion_tokens` may stand there too,
                       and those given by the run win
        completion_ids the generated tokens, from which `completion_tokens` is made
        completion_tokens  how many of them the model wrote, where tools wrote the others
        messages       the completions as conversations, for rewards that read those; None: they are plain text
        trainer_state  plain values for rewards that read the trainer's state
        of_images      the completions are PIL images instead of text
        """
        known = self._without_provided(columns or {}, prompts is not None, completion_ids is not None)
        known = _runtime_columns(known, prompts, completion_ids)
        known |= {} if completion_tokens is None else {"completion_tokens": list(completion_tokens)}
        _check_batch(completions, known, group_size, of_images)
        batch = Batch(
            list(completions),
            None if messages is None else list(messages),
            known,
            group_size,
            None if trainer_state is None else dict(trainer_state),
            has_environments,
            of_images,
        )
        rounds = self._with_workers(lambda: self._round(batch))
        answers = next((each.answers for each in rounds if each.reward.signature.yields_answers), None)
        return Scores(
            values=[list(row) for row in zip(*(each.values for each in rounds), strict=True)]
            if rounds
            else [[] for _ in completions],
            answers=answers,
            counts={each.reward.name: each.counts for each in rounds},
            seconds={each.reward.name: each.seconds for each in rounds},
            extra=_extra_columns(rounds),
            metrics=_joined([each.metrics for each in rounds]),
        )

    def _without_provided(
        self, columns: Mapping[str, Sequence[Any]], has_prompts: bool, has_ids: bool
    ) -> dict[str, Sequence[Any]]:
        """The data's columns, less those whose names the run fills itself; that is said once."""
        filled = {"completions", *RUNTIME_OBJECTS}
        filled |= {"prompts"} if has_prompts else set()
        filled |= {"completion_ids", "completion_tokens"} if has_ids else set()
        lost = sorted(filled.intersection(columns) - self._said)
        if lost:
            self._said.update(lost)
            log.warning("%s", provided_instead(lost))
        return {name: values for name, values in columns.items() if name not in filled}

    def close(self) -> None:
        """Ends all worker processes. Scoring again would start them anew."""
        for pool in self._pools():
            pool.close()

    def __enter__(self) -> RewardRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _pools(self) -> list[WorkerPool]:
        return [reward.pool for reward in self._rewards if reward.pool is not None]

    def _round(self, batch: Batch) -> list[RewardRound]:
        rounds = [RewardRound(reward, batch) for reward in self._rewards]
        for each in rounds:
            each.begin()
        run_pools(self._pools())
        return rounds

    def _with_workers(self, action: Callable[[], T]) -> T:
        """Repeats `action` with a callable in this process if its worker says that it cannot load it."""
        while True:
            try:
                return action()
            except WorkerStartError as error:
                reward = next(reward for reward in self._rewards if reward.pool is error.pool)
                if reward.spec.function is None or not error.reported:
                    raise RewardError(f"reward {reward.name!r} could not be loaded:\n{error}") from None
                reward.run_here(str(error).strip().rpartition("\n")[2])


# ---- small questions ------------------------------------------------------------------------------


def _distinct(names: list[str]) -> list[str]:
    """Repeated names get a number: reward, reward_2."""
    seen: dict[str, int] = {}
    result = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        result.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return result


def _runtime_columns(
    columns: Mapping[str, Sequence[Any]],
    prompts: Sequence[Any] | None,
    completion_ids: Sequence[Sequence[int]] | None,
) -> dict[str, list[Any]]:
    result = {name: list(values) for name, values in columns.items()}
    if prompts is not None:
        result["prompts"] = list(prompts)
    if completion_ids is not None:
        result["completion_ids"] = [list(ids) for ids in completion_ids]
    if "completion_ids" in result and "completion_tokens" not in result:
        result["completion_tokens"] = [len(ids) for ids in result["completion_ids"]]
    return result


def _extra_columns(rounds: Sequence[RewardRound]) -> dict[str, list[Any]]:
    """What rewards logged; of two that use one name, the later one's carries its own before it."""
    columns: dict[str, list[Any]] = {}
    for each in rounds:
        for name, values in each.extra.items():
            columns[name if name not in columns else f"{each.reward.name}/{name}"] = values
    return columns


def _joined(parts: Sequence[Mapping[str, list[float]]]) -> dict[str, list[float]]:
    names = {name: None for part in parts for name in part}
    return {name: [value for part in parts for value in part.get(name, [])] for name in names}


def _described(spec: RewardSpec, base_dir: str | Path, startup_timeout_s: float) -> RewardSignature:
    """What a reward asks for; where its source does not show it, a process of its own loads it and tells."""
    signature = describe(spec, base_dir)
    if signature.known:
        return signature
    arguments = {
        "name": spec.name,
        "base_dir": str(Path(base_dir).resolve()),
        "args": dict(spec.args),
        "completions_as": spec.completions_as,
    }
    pool = WorkerPool(
        "posttrain.rewards.call:signature_handler", arguments, 1, startup_timeout_s, startup_timeout_s
    )
    answers: list[Outcome] = []
    try:
        pool.submit(None, answers.append)
        run_pools([pool])
    except WorkerStartError as error:
        raise RewardError(f"reward {spec.title!r} could not be loaded:\n{error}") from None
    finally:
        pool.close()
    (outcome,) = answers
    if outcome.failure is not None:
        raise RewardError(f"reward {spec.title!r} could not be loaded:\n{outcome.message}\n{outcome.detail}")
    return outcome.result


def _check_batch(
    completions: Sequence[Any], columns: Mapping[str, Sequence[Any]], group_size: int, of_images: bool
) -> None:
    if group_size < 1 or len(completions) % group_size:
        raise ValueError(f"{len(completions)} completions are not whole groups of {group_size}")
    for name, values in columns.items():
        if len(values) != len(completions):
            raise ValueError(f"column {name!r} has {len(values)} values for {len(completions)} completions")
    for position, text in enumerate(completions):
        if not of_images and not isinstance(text, str):
            raise TypeError(f"completion {position} is {type(text).__name__}, not text")
