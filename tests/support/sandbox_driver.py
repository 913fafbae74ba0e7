"""Runs one attack in a sandbox: a process of its own, which may be killed, with limits above those of the sandbox.

JSON from standard input: kind, mark, limits, and either `source` (a program) or `sources` and `tests` (statements).
JSON to standard output: what came of it.
"""

from __future__ import annotations

import itertools
import json
import re
import resource
import sys
import time
from pathlib import Path

from posttrain.rewards.sandbox import run_program
from posttrain.rewards.sandbox.limits import ProgramLimits
from posttrain.rewards.sandbox.protection import Protection, protection_of
from posttrain.rewards.sandbox.run_program import run_script
from posttrain.rewards.sandbox.run_tests import Statements, run_tests

# A sandbox that set no limits would leave these, which the machine survives.
OUTER = (
    (resource.RLIMIT_AS, 4 * 2**30),
    (resource.RLIMIT_FSIZE, 256 * 2**20),
    (resource.RLIMIT_CPU, 60),
    (resource.RLIMIT_NPROC, 2000),  # nothing for root, for whom the attack itself counts
    (resource.RLIMIT_CORE, 0),
)


def main() -> None:
    asked = json.load(sys.stdin)
    for limit, value in OUTER:
        resource.setrlimit(limit, (value, value))
    protection = protection_of(asked["kind"])
    assert isinstance(protection, Protection), protection
    numbers = itertools.count()  # the end of one program must not end the other
    run_program.new_mark = lambda: f"{asked['mark']}-{next(numbers)}"
    limits = ProgramLimits(**asked["limits"])
    began = time.monotonic()
    if "tests" in asked:
        verdict = run_tests(asked["sources"], Statements(tuple(asked["tests"])), limits, protection.enclosure)
        found = {"passed": verdict.passed, "why": verdict.why}
    else:
        ended = run_script([asked["source"]], asked["stdin"], limits, protection.enclosure)
        found = {
            "reason": ended.reason,
            "code": ended.code,
            "output": ended.output.decode(errors="replace"),
            "errors": ended.errors.decode(errors="replace"),
        }
    found["seconds"] = time.monotonic() - began
    # not ru_maxrss, which begins with what the process had that started this one
    found["peak_mb"] = int(re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[0]) // 1024
    print(json.dumps(found))


if __name__ == "__main__":
    main()
