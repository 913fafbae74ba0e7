"""Rows of local files, one mapping each: JSON Lines, JSON, Parquet, CSV, each also .gz or .zst, and folders of them."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from posttrain.data.decoding import COMPRESSED, DataError, lines, opened, parsed, whole_text

Row = dict[str, Any]

__all__ = ["DataError", "Row", "files_of", "iter_rows", "size_of"]

_GLOB = re.compile(r"[*?\[]")
_SPLITS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "eval": "validation",
}
"""First word of a shard's name -> its split."""


def iter_rows(path: str | Path) -> Iterator[Row]:
    """The rows of a file, or of all files of a folder or pattern, in order, read as they are asked for (JSON as a
    whole)."""
    files = files_of(path)
    return (row for file in files for row in _READERS[kind_of(file)](file))


def files_of(path: str | Path) -> list[Path]:
    """The files that a path means: itself, the shards of a folder, or what a pattern (train-*.parquet) matches."""
    path = Path(path)
    if path.is_file():
        if kind_of(path) not in _READERS:
            raise DataError(
                f"{str(path)!r}: unknown kind of file; write one of {', '.join(_READERS)}, each also with .gz or .zst"
            )
        return [path]
    if path.is_dir():
        return _shards(path, sorted(path.iterdir()), str(path))
    if _GLOB.search(path.name) and path.parent.is_dir():
        found = sorted(path.parent.glob(path.name))
        if found:
            return _shards(path.parent, found, str(path), chosen=True)
        raise DataError(f"no file matches {str(path)!r}")
    if path.exists():
        raise DataError(f"{str(path)!r} is neither a file nor a folder")
    raise DataError(f"no file {str(path)!r} here or beside the recipe")


def _shards(folder: Path, found: list[Path], named: str, *, chosen: bool = False) -> list[Path]:
    """The data files among `found`: of one kind, and of one split unless they were `chosen` by a pattern."""
    files = [
        file
        for file in found
        if file.is_file() and kind_of(file) in _READERS and not file.name.startswith((".", "_"))
    ]
    if not files:
        within = sorted({file.parent for file in folder.glob("*/*") if kind_of(file) in _READERS})
        there = f"; there are some in {within[0]}" if within else ""
        raise DataError(f"{named!r} holds no data file ({', '.join(_READERS)}, each also .gz or .zst){there}")
    kinds = sorted({kind_of(file) for file in files})
    if len(kinds) > 1:
        raise DataError(
            f"{named!r} holds files of several kinds ({', '.join(kinds)}); name some: {folder}/*{kinds[-1]}*"
        )
    splits = {split: file for file in reversed(files) if (split := split_of(file)) is not None}
    if len(splits) > 1 and not chosen:
        first = splits.get("train", files[0]).name
        pattern = re.sub(r"([-_]?\d+)(-of-\d+)?", "*", first, count=1)
        raise DataError(
            f"{named!r} holds several splits ({', '.join(sorted(splits))}); name one: {folder / pattern}"
        )
    return files


def kind_of(file: Path) -> str:
    """.jsonl, .json, .parquet or .csv, whatever it is packed in."""
    suffix = file.with_suffix("").suffix if file.suffix in COMPRESSED else file.suffix
    return {".ndjson": ".jsonl"}.get(suffix, suffix)


def split_of(file: Path) -> str | None:
    """The split that a shard's name begins with (train-00000-of-00002.parquet)."""
    return _SPLITS.get(re.split(r"[-_.\d]", file.name.lower(), maxsplit=1)[0])


def size_of(path: str | Path) -> int:
    """Bytes of all files that the path means, as they lie on the disk."""
    return sum(file.stat().st_size for file in files_of(path))


def _jsonl(path: Path) -> Iterator[Row]:
    with opened(path) as stream:
        yield from _json_lines(lines(stream, path), path)


def _json_lines(texts: Iterable[str], path: Path) -> Iterator[Row]:
    for number, line in enumerate(texts, start=1):
        if line.strip():
            yield _mapping(parsed(line, path, f"line {number}"), path, f"line {number}")


def _json(path: Path) -> Iterator[Row]:
    with opened(path) as stream:
        text = whole_text(stream, path)
    if _is_lines(text, path):
        yield from _json_lines(io.StringIO(text), path)  # splitlines() would also cut at U+2028 inside a text
        return
    content = parsed(text, path, "the file")
    # Alpaca-like files are a list; some hubs wrap it: {"data": [...]}.
    rows = content.get("data") if isinstance(content, dict) else content
    if not isinstance(rows, list):
        raise DataError(f"{path}: expected a list of rows, or a mapping with a list under 'data'")
    for number, row in enumerate(rows, start=1):
        yield _mapping(row, path, f"row {number}")


def _is_lines(text: str, path: Path) -> bool:
    """Whether a .json file is JSON Lines, as many are: its first line is a mapping of its own, and another follows."""
    first, _, rest = text.lstrip().partition("\n")
    if not first.startswith("{") or not rest.lstrip().startswith("{"):
        return False
    try:
        parsed(first, path, "line 1")
    except DataError:
        return False
    return True


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    from pyarrow import parquet

    with opened(path) as stream:
        # Parquet is read from its end: what is packed is unpacked first.
        source = io.BytesIO(stream.read()) if path.suffix in COMPRESSED else stream
        try:
            for batch in parquet.ParquetFile(source).iter_batches(batch_size=1024):
                yield from batch.to_pylist()
        except (pyarrow.ArrowException, UnicodeDecodeError) as error:
            raise DataError(
                f"{path}: cannot be read as Parquet: {str(error).strip().splitlines()[0]}"
            ) from None


def _csv(path: Path) -> Iterator[Row]:
    with opened(path) as stream:
        reader = csv.DictReader(lines(stream, path), strict=True)
        names = _header(reader, path)
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise DataError(f"{path}: two columns are called {twice[0]!r}; the last would win, so rename one")
        while True:
            try:
                row = next(reader, None)
            except csv.Error as error:
                raise DataError(f"{path}: line {reader.line_num + 1}: {_csv_reason(error)}") from None
            if row is None:
                return
            if None in row or None in row.values():
                raise DataError(f"{path}: line {reader.line_num}: not as many fields as the header has")
            yield row


def _header(reader: csv.DictReader[str], path: Path) -> list[str]:
    try:
        return list(reader.fieldnames or [])
    except csv.Error as error:
        raise DataError(f"{path}: line 1: {_csv_reason(error)}") from None


def _csv_reason(error: csv.Error) -> str:
    if "field limit" in str(error):
        return (
            f"a field of more than {csv.field_size_limit():,} characters; is a quote missing? "
            "Such long texts go into JSON Lines"
        )
    return f"not CSV: {error}"


_READERS = {".jsonl": _jsonl, ".json": _json, ".parquet": _parquet, ".csv": _csv}


def _mapping(row: Any, path: Path, where: str) -> Row:
    if not isinstance(row, dict):
        raise DataError(f"{path}: {where} is not a mapping of columns to values")
    return row
