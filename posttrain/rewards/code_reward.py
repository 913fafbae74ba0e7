"""The reward for programs: the share of a row's tests that the program in a completion passes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from posttrain.rewards.hooks import (
    MachineReport,
    checks_settings,
    judges_each,
    looks_at_machine,
    needs_one_of,
    prepares,
)
from posttrain.rewards.program_text import program_of, row_tests, sources_of
from posttrain.rewards.sandbox.enclosure import Enclosure
from posttrain.rewards.sandbox.limits import ProgramLimits
from posttrain.rewards.sandbox.protection import Protection, find_protection
from posttrain.rewards.sandbox.run_tests import CodeVerdict, SandboxError, run_tests

SECONDS = 6.0
MEMORY_MB = 1024
START_S = 1.0
"""What starting and ending a program may add to its time on a busy machine."""

UNSAFE = (
    "programs of the model would run with no protection but limits; install bubblewrap, or run where the kernel lets "
    "you make user namespaces, or write allow_unsafe: true in the reward's args where the machine holds nothing to lose"
)


class NoSandbox(RuntimeError):
    """This machine offers none, and the settings do not do without."""


def require_protection(allow_unsafe: bool) -> Protection:
    """What this machine offers. NoSandbox where that is nothing and `allow_unsafe` is false, RuntimeError where no
    program can be run at all (outside Linux)."""
    found = find_protection()
    if not found.isolates and not allow_unsafe:
        raise NoSandbox(f"{'; '.join(found.describe())}. {UNSAFE}")
    return found


def at_a_time() -> int:
    """Programs of one worker at a time: its share of the processors, beside the runner's other workers."""
    processors = os.cpu_count() or 1
    return max(1, processors // max(1, min(4, processors // 2)))


def _look(
    group_size: int,
    timeout_s: float,
    *,
    seconds: float = SECONDS,
    parallel: int | None = None,
    allow_unsafe: bool = False,
    **_: Any,
) -> MachineReport:
    """For `posttrain plan`: which sandbox is here, and whether a group of endless programs fits a call's time."""
    try:
        found = find_protection()
    except RuntimeError as error:
        return MachineReport([], [], [str(error)])
    faults, warnings = [], []
    if not found.isolates and not allow_unsafe:
        faults.append(f"no sandbox on this machine: {UNSAFE}")
    rounds = -(-group_size // (parallel or at_a_time()))
    longest = rounds * (seconds + START_S)
    if longest > timeout_s:
        warnings.append(
            f"{group_size} programs that never end, {parallel or at_a_time()} at a time for {seconds:g} s each, take "
            f"{longest:g} s, and a call has timeout_s {timeout_s:g}; raise it, or lower args.seconds"
        )
    return MachineReport(found.describe(), warnings, faults)


def _check(*, seconds: float = SECONDS, memory_mb: int = MEMORY_MB, parallel: int | None = None) -> None:
    ProgramLimits(seconds=seconds, memory_mb=memory_mb)
    if parallel is not None and parallel < 1:
        raise ValueError(f"parallel is {parallel}; at least one program has to run at a time")


def _prepare() -> None:
    find_protection()


@prepares(_prepare)
@judges_each
@checks_settings(_check)
@looks_at_machine(_look)
@needs_one_of("tests", "test_list", "test")
def code_tests(
    completions: Sequence[str],
    *,
    tests: Sequence[Any] | None = None,
    test_list: Sequence[Any] | None = None,
    test_imports: Sequence[Any] | None = None,
    test_setup_code: Sequence[Any] | None = None,
    test: Sequence[Any] | None = None,
    entry_point: Sequence[Any] | None = None,
    prefix: Sequence[Any] | None = None,
    log_extra: Callable[[str, list[Any]], None] | None = None,
    all_or_nothing: bool = False,
    seconds: float = 6.0,
    memory_mb: int = 1024,
    parallel: int | None = None,
    allow_unsafe: bool = False,
    **_: Any,
) -> list[float | None]:
    """The share of a row's tests that the program in a completion passes; None where the row has no tests that can be
    run. A program that fails, hangs, takes too much, or is not there at all has passed none of those not yet passed.

    The program is the last fenced block of Python, else the last block without a mark, else the whole text. It runs
    with the standard library in a sandbox; expected results never come near it. A row's tests stand in one of

        tests       {"inputs": [...], "outputs": [...]} or a list of {"input": ..., "output": ...}, texts of standard
                    input and output; or a list of statements as below; may be JSON text
        test_list   assert statements that call the program (MBPP), with `test_imports` and `test_setup_code`
        test        check(candidate) (HumanEval), with `entry_point`, and with `prefix`: the code that the prompt
                    shows, of which the completion may be the rest

    With `all_or_nothing`, 1.0 for all tests and else 0.0. `seconds` is the time for all tests of a row, `memory_mb`
    the memory of a process, `parallel` how many programs run at a time (None: this worker's share of the processors).
    `allow_unsafe` runs programs also where the machine has no sandbox. NoSandbox without it.
    """
    protection = require_protection(allow_unsafe)
    limits = ProgramLimits(seconds=seconds, memory_mb=memory_mb)
    columns = {
        "tests": tests,
        "test_list": test_list,
        "test_imports": test_imports,
        "test_setup_code": test_setup_code,
        "test": test,
        "entry_point": entry_point,
        "prefix": prefix,
    }
    rows = [
        {name: values[row] for name, values in columns.items() if values is not None}
        for row in range(len(completions))
    ]
    with ThreadPoolExecutor(parallel or at_a_time()) as pool:
        verdicts = list(
            pool.map(
                lambda text, row: judge_program(text, row, limits, protection.enclosure, all_or_nothing),
                completions,
                rows,
            )
        )
    if log_extra is not None:
        log_extra("code_tests", [in_words(verdict) for verdict in verdicts])
    return [score_of(verdict, all_or_nothing) for verdict in verdicts]


def judge_program(
    completion: str,
    row: dict[str, Any],
    limits: ProgramLimits,
    enclosure: Enclosure,
    all_or_nothing: bool = False,
) -> CodeVerdict:
    """How many of the row's tests the completion's program passes. With `all_or_nothing` it ends at the first that
    fails. SandboxError where it could not be run, twice."""
    tests = row_tests(row)
    if tests is None:
        return CodeVerdict(None, 0, "no tests")
    program = program_of(completion)
    if program is None:
        return CodeVerdict(0, tests.count, "no program")
    sources = sources_of(program, tests)
    try:
        return run_tests(sources, tests, limits, enclosure, until_failure=all_or_nothing)
    except SandboxError:  # a machine out of processes or memory for a moment
        return run_tests(sources, tests, limits, enclosure, until_failure=all_or_nothing)


def score_of(verdict: CodeVerdict, all_or_nothing: bool) -> float | None:
    if verdict.passed is None:
        return None
    return float(verdict.passed == verdict.total) if all_or_nothing else verdict.passed / verdict.total


def in_words(verdict: CodeVerdict) -> str:
    if verdict.passed is None:
        return f"cannot be judged: {verdict.why}"
    return f"{verdict.passed} of {verdict.total}" + (f"; {verdict.why}" if verdict.why else "")
