"""Files of AlpacaEval that another tool wrote: outputs to judge, and annotations already judged.

Every kind of file that training data may have is read (.json, .jsonl, .parquet, .csv, also .gz and .zst), annotations
not from .csv, which has no numbers. What is wrong with a row is said with its index, counted from 0 as in the list.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from posttrain.data.decoding import COMPRESSED, DataError
from posttrain.data.files import iter_rows

Row = dict[str, Any]
SHOWN = 5
"""Indices that a message names."""


def read_outputs(path: Path) -> list[Row]:
    """Rows of "instruction", "output" and "generator" (the file's name where a row lacks it). ValueError says which
    rows are not such."""
    rows = _rows(path)
    _refuse(
        path, rows, _no_text("instruction"), "no 'instruction' of text", "take the package's own instructions"
    )
    _refuse(
        path, rows, lambda row: "output" not in row, "no 'output'", "each row holds the model's answer there"
    )
    _refuse(
        path,
        rows,
        lambda row: row["output"] is None,
        "a null 'output'",
        'generate those answers again, or write "" where the model said nothing',
    )
    _refuse(path, rows, _no_text("output"), "an 'output' that is no text", "write the answer alone, as text")
    _refuse_twice(path, rows)
    name = bare_name(path)
    return [row | {"generator": str(row.get("generator") or name)} for row in rows]


def read_annotations(path: Path) -> list[Row]:
    """Rows of a stored annotation file: both outputs, their generators, the annotator, and a preference or null."""
    rows = _rows(path)
    for key in ("instruction", "output_1", "output_2"):
        _refuse(path, rows, _no_text(key), f"no {key!r} of text", "give a file that alpaca_eval wrote")
    for key in ("generator_1", "generator_2", "annotator"):
        _refuse(path, rows, _no_text(key), f"no {key!r}", "give a file that alpaca_eval wrote")
    _refuse(
        path,
        rows,
        lambda row: "preference" not in row,
        "no 'preference'",
        "give a file that alpaca_eval wrote",
    )
    _refuse(
        path,
        rows,
        lambda row: not _is_preference(row["preference"]),
        "a 'preference' that is none",
        "it is a number from 1 to 2, 0 for a tie, or null where the judge failed",
    )
    _refuse_twice(path, rows)
    return rows


def bare_name(path: Path) -> str:
    """The file's name without its kinds: mine.json.gz is mine."""
    plain = path.with_suffix("") if path.suffix in COMPRESSED else path
    return plain.stem


def _rows(path: Path) -> list[Row]:
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    rows = list(iter_rows(path))
    if not rows:
        raise DataError(f"{path}: no rows")
    return rows


def _no_text(key: str) -> Callable[[Row], bool]:
    return lambda row: not isinstance(row.get(key), str)


def _is_preference(value: Any) -> bool:
    if value is None:
        return True
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isnan(value) or value in (-1, 0) or 1 <= value <= 2


def _refuse(path: Path, rows: Sequence[Row], wrong: Callable[[Row], bool], what: str, remedy: str) -> None:
    found = [index for index, row in enumerate(rows) if wrong(row)]
    if found:
        raise ValueError(f"{path}: {_named(found)} {'has' if len(found) == 1 else 'have'} {what}; {remedy}")


def _refuse_twice(path: Path, rows: Sequence[Row]) -> None:
    first: dict[str, int] = {}
    for index, row in enumerate(rows):
        before = first.setdefault(row["instruction"], index)
        if before != index:
            raise ValueError(
                f"{path}: rows {before} and {index} hold the same instruction {short(row['instruction'])}; give one "
                "answer of one model each"
            )


def _named(indices: Sequence[int]) -> str:
    shown = ", ".join(map(str, indices[:SHOWN]))
    if len(indices) == 1:
        return f"row {shown}"
    more = f" and {len(indices) - SHOWN} more" if len(indices) > SHOWN else ""
    return f"{len(indices)} rows ({shown}{more}, counted from 0)"


def short(text: str) -> str:
    return repr(text if len(text) < 60 else text[:57] + "...")
