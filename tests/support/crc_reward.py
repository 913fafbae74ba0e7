"""A reward in a file of its own: its worker process imports this, and nothing heavy with it."""

from __future__ import annotations

import zlib
from typing import Any


def judged(completions: list[str], *, prompts: list[str], **_: Any) -> list[float]:
    """1.0 for some responses, so that groups differ; never looks at other responses."""
    return [float(zlib.crc32(f"{p}|{c}".encode()) % 5 < 2) for p, c in zip(prompts, completions, strict=True)]
