"""Do the published reference programs pass their tests here? One that does not shows a fault of sandbox or judge.

    python eval/code/reference_programs.py DIR [--kind bubblewrap|namespaces|plain] [--limit N] [--at-a-time 2]

DIR holds humaneval/HumanEval.jsonl.gz and mbpp/mbpp.jsonl.gz. Prints, for each, how many programs pass all of their
tests, the seconds it took, and each that does not.
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from posttrain.rewards.program_text import row_tests, sources_of
from posttrain.rewards.sandbox.enclosure import KINDS, Enclosure
from posttrain.rewards.sandbox.limits import ProgramLimits
from posttrain.rewards.sandbox.protection import find_protection, protection_of
from posttrain.rewards.sandbox.run_tests import CodeVerdict, run_tests

FILES = {"humaneval": "humaneval/HumanEval.jsonl.gz", "mbpp": "mbpp/mbpp.jsonl.gz"}


def judge(row: dict[str, Any], enclosure: Enclosure) -> CodeVerdict:
    tests = row_tests(row | {"prefix": row.get("prompt")})
    assert tests is not None, row["task_id"]
    program = row.get("code") or row["canonical_solution"]
    return run_tests(sources_of(program, tests), tests, ProgramLimits(seconds=20.0), enclosure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kind", choices=KINDS, help="of the sandbox (default: the one that is found)")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--at-a-time", type=int, default=2)
    args = parser.parse_args()
    protection = protection_of(args.kind) if args.kind else find_protection()
    if isinstance(protection, str):
        raise SystemExit(f"{args.kind} is not to be had here: {protection}")
    for name, file in FILES.items():
        lines = gzip.decompress((args.folder / file).read_bytes()).decode().split("\n")
        rows = [json.loads(line) for line in lines if line.strip()][: args.limit]
        began = time.monotonic()
        with ThreadPoolExecutor(args.at_a_time) as pool:
            verdicts = list(pool.map(partial(judge, enclosure=protection.enclosure), rows))
        passed = sum(verdict.passed == verdict.total for verdict in verdicts)
        seconds = time.monotonic() - began
        print(f"{name}: {passed} of {len(rows)} pass, {protection.kind}, {seconds:.0f} s")
        for row, verdict in zip(rows, verdicts, strict=True):
            if verdict.passed != verdict.total:
                print(f"  {row['task_id']}: {verdict}")


if __name__ == "__main__":
    main()
