"""What the YAML tasks beside this file call: local benchmark files as datasets, and MATH's grading.

The files are those of `posttrain eval tasks --check DIR`, with DIR in $POSTTRAIN_DATA; questions and prompts are the
benchmark's own, so that lm-eval and `posttrain eval` ask the same.
"""

from __future__ import annotations

from typing import Any

from datasets import Dataset, DatasetDict

from posttrain.answers.grading import grade
from posttrain.evaluation import tasks


def gsm8k(**_: Any) -> DatasetDict:
    return _dataset("gsm8k")


def math500(**_: Any) -> DatasetDict:
    return _dataset("math500")


def grade_boxed(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """The last closed box against the gold answer, as the reward `math_answer` grades. A comparison that never ends
    holds up lm-eval, which has no deadline; `posttrain eval grade` has one."""
    return {"exact_match": float(grade(doc["gold"], results[0]).correct is True)}


def _dataset(name: str) -> DatasetDict:
    benchmark = tasks.load(name)
    folder = tasks.data_folder(None)
    if folder is None:
        raise ValueError(f"set ${tasks.DATA_VARIABLE} to the folder that holds {benchmark.data.file}")
    rows = [{"prompt": p.prompt, "gold": p.gold} for p in tasks.problems(benchmark, folder)]
    return DatasetDict({"test": Dataset.from_list(rows)})
