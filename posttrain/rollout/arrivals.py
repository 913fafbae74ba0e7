"""How many completions have arrived, told to the live view: of requests in threads, and of vLLM's own loop."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from tqdm import tqdm

from posttrain.process.phases import Open

T = TypeVar("T")


def counting(phase: Open) -> Callable[[Sequence[T]], Sequence[T]]:
    """A function that counts the completions it is handed, from any thread, and hands them on."""
    lock, arrived = threading.Lock(), 0

    def count(completions: Sequence[T]) -> Sequence[T]:
        nonlocal arrived
        with lock:
            arrived += len(completions)
            phase.at(arrived)
        return completions

    return count


def silent_bar(phase: Open) -> Callable[..., Any]:
    """What `LLM.generate(use_tqdm=...)` takes: a bar that draws nothing and tells the view its count."""

    class Bar(tqdm):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **{**named, "file": io.StringIO()})

        def update(self, n: float | None = 1) -> bool | None:
            drawn = super().update(n)
            phase.at(int(self.n))
            return drawn

    return Bar
