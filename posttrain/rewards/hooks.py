"""What a reward function may declare about itself, by decorator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

Extractor = Callable[..., Sequence["str | None"]]
"""(completions, **settings) -> one normalised final answer a completion, None where there is none."""


def yields_answers(extractor: Extractor) -> Callable[[F], F]:
    """Attaches `reward.answers`: the final answer of each completion, in a spelling that equal answers share.

    Methods that ask how far a group's answers agree (COPO) and majority votes read it. The extractor is called as
    `extractor(completions, **settings)` with those of the reward's settings that it names as parameters. "No answer"
    has to be None: a leftover text would count as an answer of its own.
    """

    def attach(function: F) -> F:
        function.answers = extractor  # type: ignore[attr-defined]  # functions take attributes
        return function

    return attach


def judges_each(function: F) -> F:
    """Declares that each completion is judged by itself, not within its group.

    When such a reward crashes or runs out of time on a group and failures are skipped, its completions are tried
    one by one, so that only the guilty one goes unjudged.
    """
    function.judges_each = True  # type: ignore[attr-defined]  # functions take attributes
    return function


def checks_settings(check: Callable[..., None]) -> Callable[[F], F]:
    """Attaches `check(**settings)`, called before anything is loaded; it raises ValueError for settings that
    cannot work."""

    def attach(function: F) -> F:
        function.check_settings = check  # type: ignore[attr-defined]  # functions take attributes
        return function

    return attach


def prepares(prepare: Callable[[], None]) -> Callable[[F], F]:
    """Attaches slow imports that a worker does when it starts, outside the time limit of its first call."""

    def attach(function: F) -> F:
        function.prepare = prepare  # type: ignore[attr-defined]  # functions take attributes
        return function

    return attach


@dataclass(frozen=True)
class MachineReport:
    """What a reward says of the machine it is to run on, in sentences: for reading, to be warned of, reasons not to
    start."""

    lines: list[str]
    warnings: list[str]
    faults: list[str]


def looks_at_machine(look: Callable[..., MachineReport]) -> Callable[[F], F]:
    """Attaches `look(group_size, timeout_s, **settings)`, which `posttrain plan` asks of a built-in reward."""

    def attach(function: F) -> F:
        function.looks_at_machine = look  # type: ignore[attr-defined]  # functions take attributes
        return function

    return attach


def needs_one_of(*columns: str) -> Callable[[F], F]:
    """Declares optional columns of which the data has to have at least one."""

    def attach(function: F) -> F:
        function.needs_one_of = columns  # type: ignore[attr-defined]  # functions take attributes
        return function

    return attach
