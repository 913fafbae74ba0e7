"""What a program may use up."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

MEBI = 2**20


@dataclass(frozen=True)
class ProgramLimits:
    """Limits of one program and what it starts.

    seconds     wall-clock time from its first line on; processor time of each of its processes, a second or two more
    memory_mb   address space of each process, in MiB (the interpreter itself takes about 40)
    file_mb     largest file, in MiB
    folder_mb   all files together, in MiB, where the folder is one in memory
    processes   processes and threads at a time
    open_files  open files of a process
    output_kb   what is read of its output, standard output and error each, in KiB; a program that prints more is ended
    """

    seconds: float = 10.0
    memory_mb: int = 1024
    file_mb: int = 16
    folder_mb: int = 64
    processes: int = 16
    open_files: int = 64
    output_kb: int = 1024

    def __post_init__(self) -> None:
        least = {"memory_mb": 128, "open_files": 16}  # below, the interpreter does not start
        for field in fields(self):
            value, floor = getattr(self, field.name), least.get(field.name, 1)
            if field.name == "seconds":
                if not 0 < value <= 86400:
                    raise ValueError(
                        f"seconds is {value}; a program's time is above 0 and at most a day (86400)"
                    )
            elif not floor <= value <= 2**20:
                raise ValueError(f"{field.name} is {value}; it has to lie between {floor} and {2**20}")

    def with_seconds(self, seconds: float) -> ProgramLimits:
        return replace(self, seconds=seconds)

    @property
    def output_bytes(self) -> int:
        return self.output_kb * 1024

    def as_numbers(self) -> dict[str, Any]:
        """For the process that sets them: bytes and whole seconds."""
        return asdict(self) | {
            "cpu_seconds": math.ceil(self.seconds) + 1,  # the clock's limit is to come first, and be named
            "memory": self.memory_mb * MEBI,
            "file": self.file_mb * MEBI,
            "folder": self.folder_mb * MEBI,
        }
