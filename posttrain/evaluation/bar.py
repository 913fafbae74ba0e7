"""How far a stage is: a bar with count, rate and time left in a terminal, a line now and then in a pipe."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console

from posttrain.observe.job import JobView

LINE_EVERY_S = 30.0
"""Seconds between two lines where nothing can be drawn over."""
WINDOW_S = 60.0


class Rate:
    """Items a second over the last minute, or over the last two sightings where those lie further apart.

    What was done before the first sighting (a stage that goes on) is not counted.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: deque[tuple[float, int]] = deque()

    def see(self, done: int) -> None:
        now = self._clock()
        self._seen.append((now, done))
        while len(self._seen) > 2 and now - self._seen[1][0] >= WINDOW_S:
            self._seen.popleft()

    @property
    def per_second(self) -> float | None:
        if len(self._seen) < 2:
            return None
        (before, first), (now, last) = self._seen[0], self._seen[-1]
        return (last - first) / (now - before) if now > before and last > first else None

    def in_words(self, done: int, of: int) -> str:
        """ "12.5/s, 3 min left", or "" while nothing is known."""
        rate = self.per_second
        if rate is None:
            return ""
        speed = f"{rate:.1f}/s" if rate >= 1 else f"{60 * rate:.1f}/min"
        return f"{speed}, {duration((of - done) / rate)} left" if done < of else speed


def duration(seconds: float) -> str:
    """Two sizes of unit at most: 40 s, 3 min, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


@contextmanager
def bar(title: str, total: int, stream: TextIO | None = None) -> Iterator[Callable[[int, int], None]]:
    """`(done, of)` moves it. `total` stands there from the beginning."""
    rate = Rate()
    rate.see(0)
    console = Console(file=stream or sys.stderr)
    with JobView(title, console, total, rate=rate.in_words, silence_s=LINE_EVERY_S) as view:

        def move(done: int, of: int) -> None:
            rate.see(done)
            view.update(done, of)

        yield move
