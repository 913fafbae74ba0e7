"""What a reward logs beside its values, and the trainer's state it may read: TRL's `log_extra`, `log_metric` and
`trainer_state`, for a function that runs in another process than the trainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any


class RewardOutputError(ValueError):
    """A reward returned, or logged, something else than it may."""


@dataclass
class Journal:
    """Collects what is logged during one call on `size` completions; it travels back with the values.

    extra    column -> one value a completion
    metrics  name -> what was logged, in order
    """

    size: int
    extra: dict[str, list[Any]] = field(default_factory=dict)
    metrics: dict[str, list[float]] = field(default_factory=dict)

    def log_extra(self, column: str, values: Sequence[Any]) -> None:
        """A further column of the completions table, one value a completion of this call."""
        plain = [plain_value(value) for value in values]
        if len(plain) != self.size:
            raise RewardOutputError(
                f"log_extra({column!r}) got {len(plain)} values for {self.size} completions"
            )
        self.extra[str(column)] = plain

    def log_metric(self, name: str, value: float) -> None:
        """A number to be averaged over the calls of a rollout."""
        self.metrics.setdefault(str(name), []).append(float(value))


def plain_value(value: Any) -> Any:
    """A value that another process and a table can hold: numbers, text, None, or what it prints as."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    try:
        item = value.item()  # numpy's and torch's scalars
    except (AttributeError, ValueError, RuntimeError, TypeError):
        return str(value)
    return item if isinstance(item, bool | int | float | str) else str(item)


def trainer_state_of(values: Mapping[str, Any]) -> SimpleNamespace:
    """The trainer's state as it was when the rollout was scored: `state.global_step`, `state.max_steps`, ..."""
    return SimpleNamespace(**values)


class NotHere:
    """Stands for the environments where they are not: any use of it says what to do."""

    def _refuse(self, *_: Any) -> Any:
        raise RewardOutputError(
            "environments live in the training process; name `environments` as a parameter of the reward, and it is "
            "called there"
        )

    __iter__ = __len__ = __getitem__ = __bool__ = _refuse
    __getattr__ = _refuse
