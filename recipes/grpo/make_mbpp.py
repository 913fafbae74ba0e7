"""Training rows from MBPP, of which a prompt shows one test and the reward runs all.

    python recipes/grpo/make_mbpp.py DIR/mbpp/mbpp.jsonl [--out runs/mbpp]

Writes train.jsonl (tasks 601 to 974) and validation.jsonl (511 to 600), as the paper splits them; tasks 11 to 510 are
the benchmark's (`posttrain eval generate MODEL mbpp`) and stay out. The one test that is shown names the function; a
program that knows its answer by heart passes a third of the tests.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SPLITS = {"train": range(601, 975), "validation": range(511, 601)}
PROMPT = "{text} Write one ```python block. A test:\n\n```python\n{test}\n```"


def row_of(task: dict[str, Any]) -> dict[str, Any]:
    """A task as a prompt, and the columns that the reward `code_tests` reads."""
    return {
        "task_id": task["task_id"],
        "prompt": PROMPT.format(text=task["text"], test=task["test_list"][0]),
        "test_list": task["test_list"],
        "test_setup_code": task["test_setup_code"],
    }


def tasks_of(path: Path) -> Iterator[dict[str, Any]]:
    content = path.read_bytes()
    text = gzip.decompress(content) if path.suffix == ".gz" else content
    for line in text.decode("utf-8").split("\n"):
        if line.strip():
            yield json.loads(line)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="mbpp.jsonl, compressed or not")
    parser.add_argument("--out", type=Path, default=Path("runs/mbpp"))
    args = parser.parse_args(arguments)
    tasks = list(tasks_of(args.file))
    args.out.mkdir(parents=True, exist_ok=True)
    for name, numbers in SPLITS.items():
        rows = [row_of(task) for task in tasks if task["task_id"] in numbers]
        if len(rows) != len(numbers):
            raise SystemExit(
                f"{args.file}: {len(rows)} of the {len(numbers)} {name} tasks; another file's rows?"
            )
        (args.out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        print(f"{args.out / name}.jsonl: {len(rows)} rows")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
