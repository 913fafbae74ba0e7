"""The files of a run in stages: whole or absent, whenever it is killed; only samples are appended line by line."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from posttrain.recipe import RecipeError


def read_samples(folder: Path) -> dict[int, str]:
    """Row -> text over all ranks' files; a line that a kill cut short is left out."""
    found: dict[int, str] = {}
    for file in sorted(folder.glob("samples-*.jsonl")):
        for line in file.read_text(encoding="utf-8").rpartition("\n")[0].splitlines():
            sample = json.loads(line)
            found[sample["row"]] = sample["text"]
    return found


def drop_partial_line(file: Path) -> None:
    """Takes away a last line that a kill cut short: the next one must not be glued to it."""
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    if text and not text.endswith("\n"):
        file.write_text(text[: text.rfind("\n") + 1], encoding="utf-8")


def fingerprint(rows: Iterable[Any]) -> str:
    """A short name for plain rows in their order, to tell one data set from another."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]


def check_same_run(path: Path, identity: Mapping[str, Any]) -> None:
    """RecipeError unless the run noted at `path` was started as `identity` says."""
    if not path.exists():
        raise RecipeError(f"{path.parent}: nothing to resume; start without resuming")
    before = json.loads(path.read_text(encoding="utf-8"))
    for key, value in identity.items():
        if key not in before:
            raise RecipeError(
                f"{path} does not say with which {key} the run was started, so it cannot be compared; "
                "start anew in another folder"
            )
        if before[key] == value:
            continue
        if key == "rows":
            raise RecipeError(
                f"{path.parent} was started on other rows; resume it with the data it began with"
            )
        raise RecipeError(
            f"{path.parent} was started with {key} = {before[key]}, not {value}; resume it as it was"
        )


def write_lines(path: Path, rows: Iterable[Any]) -> None:
    """JSON lines, written aside first."""
    _replace(
        path, lambda file: file.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    )


def write_json(path: Path, value: Any) -> None:
    """Written aside first."""
    _replace(path, lambda file: file.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8"))


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    aside = path.with_name(f".{path.name}")
    write(aside)
    os.replace(aside, path)
