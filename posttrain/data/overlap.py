"""Contamination: which test texts share a run of words with the training texts."""

from __future__ import annotations

import re
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from posttrain.data.files import DataError, iter_rows

TEXT_COLUMNS = ("prompt", "question", "problem", "instruction", "input", "text")
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Overlap:
    """`hits` are (index in test, the shared words) of test texts that share at least one run."""

    tests: int
    hits: list[tuple[int, str]]

    @property
    def share(self) -> float:
        return len(self.hits) / self.tests if self.tests else 0.0


def overlap(train: Iterable[str], test: Sequence[str], *, n: int = 13) -> Overlap:
    """Test texts that share a run of `n` words with a training text (GPT-3's n = 13, Brown et al. 2020, app. C).

    Words are compared without case and punctuation. A test text shorter than `n` words counts when a training
    text of the same words exists.
    """
    wanted: dict[str, list[int]] = {}
    for index, text in enumerate(test):
        for run in _runs(text, n):
            wanted.setdefault(run, []).append(index)
    hits: dict[int, str] = {}
    for text in train:
        for run in _runs(text, n):
            for index in wanted.get(run, ()):
                hits.setdefault(index, run)
    return Overlap(len(test), sorted(hits.items()))


def _runs(text: str, n: int) -> Iterator[str]:
    words = _WORD.findall(text.lower())
    if len(words) < n:
        # The length in front keeps a short text from matching the inside of a long one.
        yield f"{len(words)} words: {' '.join(words)}"
        return
    for start in range(len(words) - n + 1):
        yield " ".join(words[start : start + n])


def read_texts(path: str, column: str | None) -> list[str]:
    """The texts of a file's column, or of the first of TEXT_COLUMNS that it has."""
    rows = list(iter_rows(path))
    if not rows:
        raise DataError(f"{path}: holds no rows")
    if column is None:
        column = next((name for name in TEXT_COLUMNS if name in rows[0]), None)
    if column is None or column not in rows[0]:
        raise DataError(f"{path}: no such text column; choose with --column from {', '.join(rows[0])}")
    return [str(row[column]) for row in rows]


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("train", help="training rows: .jsonl .json .parquet .csv, each also with .gz or .zst")
    parser.add_argument("test", help="test rows")
    parser.add_argument(
        "--column", help="text column of both files (default: prompt, question, problem, ...)"
    )
    parser.add_argument("--test-column", help="text column of the test file, where it has another name")
    parser.add_argument("--n", type=int, default=13, help="length of the shared run in words (default 13)")
    parser.add_argument("--show", type=int, default=5, help="how many shared runs to print (default 5)")


def main(args: Namespace) -> int:
    """`posttrain data overlap TRAIN TEST`: exit code 0 without overlap, 1 with, 2 where a file is at fault."""
    try:
        train = read_texts(args.train, args.column)
        found = overlap(train, read_texts(args.test, args.test_column or args.column), n=args.n)
    except DataError as error:
        print(error, file=sys.stderr)
        return 2
    print(
        f"{len(found.hits)} of {found.tests} test rows ({found.share:.1%}) share a run of {args.n} words "
        f"with {len(train)} training rows"
    )
    for index, run in found.hits[: args.show]:
        print(f"  test row {index}: {run}")
    return 1 if found.hits else 0
