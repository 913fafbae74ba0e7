"""Runs reward functions on whole groups, each in worker processes of its own, with a time limit.

What a reward does wrong is either raised with its traceback, or counted and left unjudged; it is never a zero.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from posttrain.rewards.call import Call, Judged, handler_of
from posttrain.rewards.pool import Outcome, WorkerPool, WorkerStartError, run_pools, start_pools
from posttrain.rewards.resolve import RewardSpec, describe
from posttrain.rewards.signature import RewardSignature
from posttrain.rewards.worker import traceback_beyond

log = logging.getLogger(__name__)
T = TypeVar("T")

REASONS = ("none", "error", "timeout", "nan", "inf")
"""Why a completion has no value: the reward returned None, failed, ran out of time, returned NaN or infinity."""


class RewardError(RuntimeError):
    """A reward failed and `on_error` is "raise"; the message holds its name and its own traceback."""


@dataclass(frozen=True)
class Scores:
    """What the rewards made of B completions; K reward functions.

    values   B lists of K: a number, or None where that function could not judge
    answers  the final answers (B) of the first reward that yields them, or None if no reward does
    counts   for each reward, how many completions went unjudged, by reason (REASONS)
    seconds  for each reward, the time its calls took, added up over workers
    """

    values: list[list[float | None]]
    answers: list[str | None] | None
    counts: dict[str, dict[str, int]]
    seconds: dict[str, float] = field(default_factory=dict)


class RewardRunner:
    """Scores completions with several rewards; use it as a context manager, or call `close`.

    specs      rewards: names, RewardSpec, mappings with name/args/weight/label/timeout_s/on_error, or callables
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
            _Reward(
                name,
                spec,
                describe(spec, base_dir),
                str(Path(base_dir).resolve()),
                timeout_s if spec.timeout_s is None else spec.timeout_s,
                on_error if spec.on_error is None else spec.on_error,
                count,
                startup_timeout_s,
            )
            for name, spec in zip(self.names, given, strict=True)
        ]
        self.weights = [spec.weight for spec in given]

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
        completions: Sequence[str],
        *,
        columns: Mapping[str, Sequence[Any]] | None = None,
        group_size: int,
        prompts: Sequence[Any] | None = None,
    ) -> Scores:
        """Scores B completions in groups of `group_size` neighbours; every reward sees whole groups.

        `columns` holds B values each: the data's columns, and `prompts`, `completion_ids` (from which
        `completion_tokens` is made) as far as rewards ask for them.
        """
        columns = _runtime_columns(columns or {}, prompts)
        _check_batch(completions, columns, group_size)
        rounds = self._with_workers(lambda: self._round(list(completions), columns, group_size))
        answers = next((each.answers for each in rounds if each.reward.signature.yields_answers), None)
        return Scores(
            values=[list(row) for row in zip(*(each.values for each in rounds), strict=True)]
            if rounds
            else [[] for _ in completions],
            answers=answers,
            counts={each.reward.name: each.counts for each in rounds},
            seconds={each.reward.name: each.seconds for each in rounds},
        )

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

    def _round(self, completions: list[str], columns: dict[str, list[Any]], group_size: int) -> list[_Round]:
        rounds = [_Round(reward, completions, columns, group_size) for reward in self._rewards]
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


class _Reward:
    """One reward and where it runs: in a pool of workers, or (`handler`) in this process."""

    def __init__(
        self,
        name: str,
        spec: RewardSpec,
        signature: RewardSignature,
        base_dir: str,
        timeout_s: float,
        on_error: str,
        workers: int,
        startup_timeout_s: float,
    ):
        self.name, self.spec, self.signature, self.on_error = name, spec, signature, on_error
        self.warned = False
        self.pool: WorkerPool | None = None
        self.handler: Callable[[Call], Judged] | None = None
        shipped = self._shipped(spec)
        if spec.function is None or shipped is not None:
            arguments = {
                "name": spec.name,
                "base_dir": base_dir,
                "args": dict(spec.args),
                "function": shipped,
            }
            self.pool = WorkerPool(
                "posttrain.rewards.call:reward_handler", arguments, workers, timeout_s, startup_timeout_s
            )

    def _shipped(self, spec: RewardSpec) -> bytes | None:
        """The pickled callable; None for a name, and for a callable that cannot be pickled."""
        if spec.function is None:
            return None
        import dill

        try:
            return dill.dumps(spec.function, recurse=True)
        except Exception as error:  # dill raises whatever the objects in a closure raise
            self.run_here(f"{type(error).__name__}: {error}")
            return None

    def run_here(self, reason: str) -> None:
        """From now on in this process; said once."""
        if self.spec.function is None:
            raise ValueError(f"reward {self.name!r} is a name, not a callable")
        log.warning(
            "reward %r cannot be sent to a worker process (%s); it runs in this process, without a time limit",
            self.name, reason,
        )  # fmt: skip
        if self.pool is not None:
            self.pool.close()
        self.pool = None
        self.handler = handler_of(self.spec.function, self.spec.args)


class _Round:
    """One reward's calls on one batch."""

    def __init__(
        self, reward: _Reward, completions: list[str], columns: dict[str, list[Any]], group_size: int
    ):
        missing = reward.signature.missing(columns)
        if missing:
            raise ValueError(
                f"reward {reward.name!r} needs the column {missing[0]!r}; "
                f"the batch has {', '.join(columns) or 'none'}. "
                "A setting of the reward's own wants a default, a value under `args`, or functools.partial"
            )
        self.reward = reward
        self.completions = completions
        self.columns = {name: columns[name] for name in reward.signature.wanted(columns)}
        self.group_size = group_size
        self.values: list[float | None] = [None] * len(completions)
        self.answers: list[str | None] = [None] * len(completions)
        self.counts: dict[str, int] = {reason: 0 for reason in REASONS}
        self.seconds = 0.0

    def begin(self) -> None:
        """Queues one call a group; without a pool, makes them."""
        for start in range(0, len(self.completions), self.group_size):
            self._submit(range(start, start + self.group_size))

    def _submit(self, rows: range) -> None:
        call = Call(
            [self.completions[row] for row in rows],
            {name: [values[row] for row in rows] for name, values in self.columns.items()},
        )
        if self.reward.pool is not None:
            self.reward.pool.submit(call, lambda outcome: self._settle(rows, outcome))
        elif self.reward.handler is not None:
            self._settle(rows, _in_process(self.reward.handler, call))

    def _settle(self, rows: range, outcome: Outcome) -> None:
        self.seconds += outcome.seconds
        if outcome.failure is None:
            self._take(rows, outcome.result)
            return
        if self.reward.on_error == "raise":
            remedy = "To count such failures and go on, give the reward on_error: skip."
            raise RewardError(f"{self._failure(rows, outcome)}\n{remedy}")
        if not self.reward.warned:
            self.reward.warned = True
            log.warning("%s\nfurther failures of this reward are only counted", self._failure(rows, outcome))
        if self.reward.signature.judges_each and len(rows) > 1:
            for row in rows:
                self._submit(range(row, row + 1))
        else:
            self.counts[outcome.failure] += len(rows)

    def _take(self, rows: range, judged: Judged) -> None:
        for position, row in enumerate(rows):
            value = judged.values[position]
            if value is None:
                self.counts["none"] += 1
            elif math.isnan(value):
                self.counts["nan"] += 1
            elif math.isinf(value):
                self.counts["inf"] += 1
            else:
                self.values[row] = value
            if judged.answers is not None:
                self.answers[row] = judged.answers[position]

    def _failure(self, rows: range, outcome: Outcome) -> str:
        where = (
            f"completions {rows.start} to {rows.stop - 1}" if len(rows) > 1 else f"completion {rows.start}"
        )
        return f"reward {self.reward.name!r} failed on {where}: {outcome.message}\n{outcome.detail}".rstrip()


# ---- small questions ------------------------------------------------------------------------------


def _in_process(handler: Callable[[Call], Judged], call: Call) -> Outcome:
    began = time.monotonic()
    try:
        return Outcome(result=handler(call), seconds=time.monotonic() - began)
    except Exception as error:  # the same policy as for a worker
        message = f"{type(error).__name__}: {error}"
        return Outcome(None, "error", message, traceback_beyond(error), time.monotonic() - began)


def _distinct(names: list[str]) -> list[str]:
    """Repeated names get a number: reward, reward_2."""
    seen: dict[str, int] = {}
    result = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        result.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return result


def _runtime_columns(
    columns: Mapping[str, Sequence[Any]], prompts: Sequence[Any] | None
) -> dict[str, list[Any]]:
    result = {name: list(values) for name, values in columns.items()}
    if prompts is not None:
        result["prompts"] = list(prompts)
    if "completion_ids" in result and "completion_tokens" not in result:
        result["completion_tokens"] = [len(ids) for ids in result["completion_ids"]]
    return result


def _check_batch(completions: Sequence[str], columns: Mapping[str, Sequence[Any]], group_size: int) -> None:
    if group_size < 1 or len(completions) % group_size:
        raise ValueError(f"{len(completions)} completions are not whole groups of {group_size}")
    for name, values in columns.items():
        if len(values) != len(completions):
            raise ValueError(f"column {name!r} has {len(values)} values for {len(completions)} completions")
    for position, text in enumerate(completions):
        if not isinstance(text, str):
            raise TypeError(f"completion {position} is {type(text).__name__}, not text")
