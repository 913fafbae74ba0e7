"""One reward and where it runs, and one round of its calls: every completion gets a number, None, or a failure."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from posttrain.rewards.call import Call, Judged, handler_of
from posttrain.rewards.messages import messages_of
from posttrain.rewards.resolve import RewardSpec
from posttrain.rewards.signature import RewardSignature
from posttrain.rewards.worker import traceback_beyond
from posttrain.rewards.worker_pool import Outcome, WorkerPool

log = logging.getLogger(__name__)

REASONS = ("none", "error", "timeout", "nan", "inf")
"""Why a completion has no value: the reward returned None, failed, ran out of time, returned NaN (which is taken as
None, as in TRL), or a number that float32 does not hold (a failure, as a crash is)."""

FLOAT32_MAX = (2.0 - 2.0**-23) * 2.0**127
"""Rewards are weighed and summed in float32."""

MESSAGES_HINT = (
    "The completions are conversations, and this reward was given their text. If it reads messages (TRL's "
    "completion[0]['content']), annotate its parameter as completions: list[list[dict]], or say "
    "completions_as: messages."
)


class RewardError(RuntimeError):
    """A reward failed and `on_error` is "raise"; the message holds its name and its own traceback."""


@dataclass(frozen=True)
class Batch:
    """What is to be scored: columns of the data and of the run, B values each, and the same for all. `of_images`: the
    completions are PIL images, which every reward is given as they are."""

    completions: list[Any]
    messages: list[Any] | None
    columns: dict[str, list[Any]]
    group_size: int
    trainer_state: dict[str, Any] | None
    has_environments: bool
    of_images: bool = False

    def completions_for(self, signature: RewardSignature) -> list[Any]:
        if self.of_images or signature.completions_as == "text":
            return self.completions
        return [messages_of(one) for one in (self.messages or self.completions)]

    def state_for(self, signature: RewardSignature) -> dict[str, Any] | None:
        return self.trainer_state if signature.takes("trainer_state") else None

    def objects_for(self, signature: RewardSignature) -> tuple[str, ...]:
        offered = ("log_extra", "log_metric", *(["environments"] if self.has_environments else []))
        return tuple(name for name in offered if signature.takes(name))


class Reward:
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


class RewardRound:
    """One reward's calls on one batch."""

    def __init__(self, reward: Reward, batch: Batch):
        missing = reward.signature.missing(batch.columns)
        if missing:
            raise ValueError(
                f"reward {reward.name!r} needs the column {missing[0]!r}; "
                f"the batch has {', '.join(batch.columns) or 'none'}. "
                "A setting of the reward's own wants a default, a value under `args`, or functools.partial"
            )
        self.reward = reward
        self.completions = batch.completions_for(reward.signature)
        self.columns = {name: batch.columns[name] for name in reward.signature.wanted(batch.columns)}
        self.trainer_state = batch.state_for(reward.signature)
        self.objects = batch.objects_for(reward.signature)
        self.conversational = batch.messages is not None
        self.group_size = batch.group_size
        self.values: list[float | None] = [None] * len(self.completions)
        self.answers: list[str | None] = [None] * len(self.completions)
        self.counts: dict[str, int] = {reason: 0 for reason in REASONS}
        self.extra: dict[str, list[Any]] = {}
        self.metrics: dict[str, list[float]] = {}
        self.seconds = 0.0

    def begin(self) -> None:
        """Queues one call a group; without a pool, makes them."""
        for start in range(0, len(self.completions), self.group_size):
            self._submit(range(start, start + self.group_size))

    def _submit(self, rows: range) -> None:
        call = Call(
            [self.completions[row] for row in rows],
            {name: [values[row] for row in rows] for name, values in self.columns.items()},
            self.trainer_state,
            self.objects,
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
        self._fail(self._failure(rows, outcome))
        if self.reward.signature.judges_each and len(rows) > 1:
            for row in rows:
                self._submit(range(row, row + 1))
        else:
            self.counts[outcome.failure] += len(rows)

    def _fail(self, what: str) -> None:
        """Raises, or says it the first time and lets it be counted."""
        if self.reward.on_error == "raise":
            raise RewardError(f"{what}\n(To count such failures and go on, give the reward on_error: skip.)")
        if not self.reward.warned:
            self.reward.warned = True
            log.warning("%s\nfurther failures of this reward are only counted", what)

    def _take(self, rows: range, judged: Judged) -> None:
        for position, row in enumerate(rows):
            value = judged.values[position]
            if value is None:
                self.counts["none"] += 1
            elif math.isnan(value):
                self.counts["nan"] += 1
            elif abs(value) > FLOAT32_MAX:
                self._fail(
                    f"reward {self.reward.name!r} gave {value:g} for completion {row}, which is not finite in float32, "
                    "in which rewards are weighed and summed"
                )
                self.counts["inf"] += 1
            else:
                self.values[row] = value
            if judged.answers is not None:
                self.answers[row] = judged.answers[position]
        for name, values in judged.extra.items():
            column = self.extra.setdefault(name, [None] * len(self.completions))
            column[rows.start : rows.stop] = values
        for name, values in judged.metrics.items():
            self.metrics.setdefault(name, []).extend(values)

    def _failure(self, rows: range, outcome: Outcome) -> str:
        where = (
            f"completions {rows.start} to {rows.stop - 1}" if len(rows) > 1 else f"completion {rows.start}"
        )
        text = f"reward {self.reward.name!r} failed on {where}: {outcome.message}\n{outcome.detail}".rstrip()
        reads_text = self.reward.signature.completions_as == "text"
        if self.conversational and reads_text and outcome.message.startswith(("TypeError", "AttributeError")):
            text += f"\n{MESSAGES_HINT}"
        return text


def _in_process(handler: Callable[[Call], Judged], call: Call) -> Outcome:
    began = time.monotonic()
    try:
        return Outcome(result=handler(call), seconds=time.monotonic() - began)
    except Exception as error:  # the same policy as for a worker
        message = f"{type(error).__name__}: {error}"
        return Outcome(None, "error", message, traceback_beyond(error), time.monotonic() - began)
