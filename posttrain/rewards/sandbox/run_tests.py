"""A program against tests: standard input and output, or statements that call it. What comes out is trusted.

Of standard input and output, the program gets the input alone; this process compares. Of tests that are Python
statements, the program runs in one enclosure and the tests in another (tests_inside.py); two pipes between them carry
calls and plain data. In both, what is expected never comes to the program, and it has no way to the verdict: its exit
code, its output, its frames and what it overrides are its own.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from posttrain.rewards.sandbox.enclosure import Enclosure
from posttrain.rewards.sandbox.limits import ProgramLimits
from posttrain.rewards.sandbox.run_program import ProgramEnd, RunningProgram, SandboxError, run_script

_HERE = __name__.rpartition(".")[0]


@dataclass(frozen=True)
class InputOutput:
    """Inputs and the outputs they are to give, equally many."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def count(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True)
class Statements:
    """Tests as Python: each passes that raises nothing.

    prefix       code before the program, from which the tests may take helpers (HumanEval's prompt)
    entry_point  the function under test, always the program's; None: what the tests call and nobody else has
    setup        run before the tests, in their process
    """

    tests: tuple[str, ...]
    setup: tuple[str, ...] = ()
    prefix: str = ""
    entry_point: str | None = None

    @property
    def count(self) -> int:
        return len(self.tests)


@dataclass(frozen=True)
class CodeVerdict:
    """How many tests of a row a program passed; `passed` None: the tests themselves cannot be run. `why` is of the
    first one that did not pass."""

    passed: int | None
    total: int
    why: str = ""


def run_tests(
    sources: Sequence[str],
    tests: InputOutput | Statements,
    limits: ProgramLimits,
    enclosure: Enclosure,
    *,
    until_failure: bool = False,
) -> CodeVerdict:
    """Runs the first of `sources` that compiles. `limits.seconds` is the time for all tests of the row together;
    tests not reached in it are failed. `until_failure`: the rest is not run once one has failed."""
    if isinstance(tests, Statements):
        return _statements(sources, tests, limits, enclosure, until_failure)
    return _input_output(sources, tests, limits, enclosure, until_failure)


# ---- standard input and output


def _input_output(
    sources: Sequence[str],
    tests: InputOutput,
    limits: ProgramLimits,
    enclosure: Enclosure,
    until_failure: bool,
) -> CodeVerdict:
    passed, why, left = 0, "", limits.seconds
    for given, expected in zip(tests.inputs, tests.outputs, strict=True):
        if left <= 0 or (until_failure and why):
            break
        ended = run_script(sources, given, limits.with_seconds(left), enclosure)
        left -= ended.seconds
        fault = _fault(ended) or ("" if same_output(ended.output, expected) else "wrong output")
        passed += not fault
        why = why or fault
    return CodeVerdict(passed, len(tests.inputs), why)


def same_output(output: bytes, expected: str) -> bool:
    """Line by line, spaces at the ends of lines and empty lines at the end aside."""
    text = output.decode("utf-8", errors="replace")
    return _lines(text) == _lines(expected)


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]


def _fault(ended: ProgramEnd) -> str:
    """What is wrong with how a program ended; "" for nothing."""
    if ended.reason == "timeout":
        return "timeout"
    if ended.reason == "output":
        return "too much output"
    if ended.code == 0:
        return ""
    said = ended.errors.decode("utf-8", errors="replace").strip().rpartition("\n")[2]
    return f"exit code {ended.code}: {said}"[:200].removesuffix(": ")


# ---- statements


@dataclass
class _Said:
    """What the tests' process has said so far."""

    passed: int = 0
    told: int = 0
    why: str = ""
    unusable: str | None = None
    broken: str | None = None
    _read: int = field(default=0, repr=False)

    def read(self, output: bytearray) -> None:
        """The lines that have come to their end."""
        end = output.rfind(b"\n") + 1
        for line in bytes(output[self._read : end]).splitlines():
            said = json.loads(line)
            self.unusable = said.get("unusable", self.unusable)
            self.broken = said.get("broken", self.broken)
            if "passed" in said:
                self.told += 1
                self.passed += said["passed"]
                self.why = self.why or said["why"]
        self._read = end


def _statements(
    sources: Sequence[str],
    tests: Statements,
    limits: ProgramLimits,
    enclosure: Enclosure,
    until_failure: bool,
) -> CodeVerdict:
    requests, replies = os.pipe(), os.pipe()
    total = len(tests.tests)
    said = _Said()
    with contextlib.ExitStack() as stack:
        try:
            # first, so that no program can keep it from starting
            judge = stack.enter_context(_tests(tests, limits, enclosure, requests[1], replies[0]))
            program = stack.enter_context(_program(sources, limits, enclosure, requests[0], replies[1]))
        finally:
            for end in (*requests, *replies):
                os.close(end)
        while not (program.is_ready or program.has_ended or judge.has_ended):
            program.look(0.02)
            judge.begin_anew()  # as long as it waits for the program
            judge.look(0.0)
        while not judge.has_ended and not (until_failure and said.why):
            judge.look(0.05)
            said.read(judge.output)
        judge.end()  # before the program, of whose end it would speak
    ended = judge.ended()
    said.read(judge.output)
    if said.unusable is not None:  # whatever the program, which may not even have been started yet
        return CodeVerdict(None, total, said.unusable)
    if said.told < total and not said.why:
        program.ended()  # SandboxError where it was never run
    if said.broken is not None:
        return CodeVerdict(0, total, said.broken)
    rest = "" if said.told == total else "timeout" if ended.reason == "timeout" else "the tests were ended"
    return CodeVerdict(said.passed, total, said.why or rest)


def _program(
    sources: Sequence[str], limits: ProgramLimits, enclosure: Enclosure, requests: int, replies: int
) -> RunningProgram:
    return RunningProgram(
        enclosure,
        limits,
        f"{_HERE}.candidate:main",
        {"sources": list(sources), "requests": requests, "replies": replies},
        modules=[f"{_HERE}.{name}" for name in ("wire", "program", "candidate")],
        pipes=(requests, replies),
        reads_output=False,
    )


def _tests(
    tests: Statements, limits: ProgramLimits, enclosure: Enclosure, requests: int, replies: int
) -> RunningProgram:
    argument = {
        "prefix": tests.prefix,
        "entry_point": tests.entry_point,
        "setup": list(tests.setup),
        "tests": list(tests.tests),
        "requests": requests,
        "replies": replies,
    }
    return RunningProgram(
        enclosure,
        limits,
        f"{_HERE}.tests_inside:main",
        argument,
        modules=[f"{_HERE}.{name}" for name in ("wire", "tests_inside")],
        pipes=(requests, replies),
    )


__all__ = ["CodeVerdict", "InputOutput", "SandboxError", "Statements", "run_tests", "same_output"]
