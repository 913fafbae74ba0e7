"""Bytes of a data file to text and JSON; whatever is wrong is said with the file and the line."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

COMPRESSED = (".gz", ".zst")
LONGEST_LINE = 16 * 2**20
"""Bytes. No row of text is longer; a file of one endless line is no JSON Lines."""


class DataError(ValueError):
    """A dataset that cannot be read or used as the recipe says: which file or column, and what to write."""


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """The file's bytes, unpacked. DataError where it cannot be opened or unpacked, also while it is read."""
    try:
        if path.suffix == ".zst":
            import pyarrow

            # pyarrow reads zstd, and Parquet needs pyarrow anyway.
            with pyarrow.input_stream(str(path), compression="zstd") as stream:
                yield io.BufferedReader(stream)  # type: ignore[arg-type]  # it has a raw stream's methods
        else:
            with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as stream:
                yield stream  # type: ignore[misc]  # both read bytes
    except (OSError, EOFError, zlib.error) as error:
        what = f"cannot be read as {path.suffix}" if path.suffix in COMPRESSED else "cannot be read"
        raise DataError(f"{path}: {what}: {_reason(error)}") from None


def _reason(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text.strip().splitlines()[0] if text.strip() else type(error).__name__


def lines(stream: IO[bytes], path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file with their ends; a byte order mark in front is taken away."""
    number = 0
    while line := stream.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) > LONGEST_LINE:
            raise DataError(
                f"{path}: line {number} is longer than {LONGEST_LINE // 2**20} MiB; one row stands on one line"
            )
        yield decoded(line, path, number)


def whole_text(stream: IO[bytes], path: Path) -> str:
    """All of a UTF-8 file."""
    return decoded(stream.read(), path, 1)


def decoded(data: bytes, path: Path, line: int) -> str:
    """`data`, which begins in line number `line`, from UTF-8."""
    if line == 1:
        # Plain text begins with no zero byte: UTF-16 without its mark.
        if data.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in data[:2]:
            raise DataError(f"{path}: is UTF-16; data files are UTF-8: iconv -f UTF-16 -t UTF-8")
        data = data.removeprefix(b"\xef\xbb\xbf")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        at = line + data.count(b"\n", 0, error.start)
        raise DataError(
            f"{path}: line {at} is not UTF-8 (byte 0x{data[error.start]:02x}); convert the file, e.g. "
            "iconv -f GBK -t UTF-8, or -f LATIN1"
        ) from None


def parsed(text: str, path: Path, where: str) -> Any:
    """JSON; `where` names the place in the file."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: {where} is not JSON: {error.msg}") from None
    except RecursionError:
        raise DataError(f"{path}: {where} is nested too deeply") from None
    except ValueError as error:  # Python's limit on the digits of an integer
        raise DataError(
            f"{path}: {where} holds a number of too many digits; write it as text ({error})"
        ) from None
    if "\\ud" in text or "\\uD" in text:
        _refuse_half_characters(value, path, where)
    return value


def _refuse_half_characters(value: Any, path: Path, where: str) -> None:
    """A lone surrogate ("\\ud83d" without its other half) is no character, and no tokenizer takes it."""
    for text in _texts(value):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(
                f"{path}: {where} holds \\u{ord(text[error.start]):04x}, half of a character (a lone surrogate); "
                "write the file anew from text that is whole"
            ) from None


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
