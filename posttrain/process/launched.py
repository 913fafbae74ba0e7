"""What `posttrain launch` and the processes that its launcher starts tell each other: through a folder of small files.

A launcher (torchrun, accelerate launch) ends with 1 whatever its processes ended with, prints a traceback of its own
last, and gives them 30 seconds after a SIGTERM. So each process notes its number when it begins and its exit code and
last line when it ends, and `posttrain launch` sends signals to the processes themselves.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "POSTTRAIN_LAUNCH"
"""Environment variable with the folder; unset where a run was not started by `posttrain launch`."""


@dataclass(frozen=True)
class Ended:
    """How one process ended, in its own words."""

    rank: int
    code: int
    line: str


def begin() -> None:
    """Notes this process, for signals."""
    if (file := _file("pid")) is not None:
        file.write_text(str(os.getpid()))


def end(code: int, line: str) -> None:
    """Notes how this process ends."""
    if (file := _file("end")) is not None:
        aside = file.with_suffix(".tmp")
        aside.write_text(json.dumps({"code": code, "line": line}))
        os.replace(aside, file)


def _file(kind: str) -> Path | None:
    folder = os.environ.get(VARIABLE)
    return None if folder is None else Path(folder) / f"{int(os.environ.get('RANK', '0')):06d}.{kind}"


def processes(folder: Path) -> Iterator[int]:
    """The processes that have begun and not said that they ended, the first rank first."""
    for file in sorted(folder.glob("*.pid")):
        if not file.with_suffix(".end").exists() and (text := file.read_text()):
            yield int(text)


def ended(folder: Path) -> Ended | None:
    """How the lowest rank that said so ended; the first rank speaks for the run."""
    for file in sorted(folder.glob("*.end")):
        said = json.loads(file.read_text())
        return Ended(int(file.stem), said["code"], said["line"])
    return None
