"""Rows of a local file, one mapping each: JSON Lines, JSON, Parquet, CSV, and each of them gzipped."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

Row = dict[str, Any]


class DataError(ValueError):
    """A dataset that cannot be read or used as the recipe says: which file or column, and what to write."""


def iter_rows(path: str | Path) -> Iterator[Row]:
    """The file's rows in order, read as they are asked for (JSON as a whole)."""
    path = Path(path)
    if not path.exists():
        raise DataError(f"no file {str(path)!r} here or beside the recipe")
    if path.is_dir():
        raise DataError(
            f"{str(path)!r} is a folder; name one file in it: {', '.join(_readable(path)) or 'none fits'}"
        )
    kind = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if kind not in _READERS:
        raise DataError(
            f"{str(path)!r}: unknown kind of file; write one of {', '.join(_READERS)}, each also with .gz"
        )
    return _READERS[kind](path)


def _readable(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir() if file.suffix in {*_READERS, ".gz"})[:5]


def _open(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8", newline="")
    return path.open(encoding="utf-8", newline="")


def _jsonl(path: Path) -> Iterator[Row]:
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _mapping(_parse(line, path, f"line {number}"), path, f"line {number}")


def _json(path: Path) -> Iterator[Row]:
    with _open(path) as file:
        content = _parse(file.read(), path, "the file")
    # Alpaca-like files are a list; some hubs wrap it: {"data": [...]}.
    rows = content.get("data") if isinstance(content, dict) else content
    if not isinstance(rows, list):
        raise DataError(f"{path}: expected a list of rows, or a mapping with a list under 'data'")
    for number, row in enumerate(rows, start=1):
        yield _mapping(row, path, f"row {number}")


def _parquet(path: Path) -> Iterator[Row]:
    from pyarrow import parquet

    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rb") as file:
        for batch in parquet.ParquetFile(file).iter_batches():
            yield from batch.to_pylist()


def _csv(path: Path) -> Iterator[Row]:
    with _open(path) as file:
        reader = csv.DictReader(file)
        for row in reader:
            if None in row or None in row.values():
                raise DataError(f"{path}: line {reader.line_num}: not as many fields as the header has")
            yield row


_READERS = {".jsonl": _jsonl, ".json": _json, ".parquet": _parquet, ".csv": _csv}


def _parse(text: str, path: Path, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: {where} is not JSON: {error.msg}") from None


def _mapping(row: Any, path: Path, where: str) -> Row:
    if not isinstance(row, dict):
        raise DataError(f"{path}: {where} is not a mapping of columns to values")
    return row
