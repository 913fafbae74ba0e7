"""A job with a known end that is no training run: an evaluation's responses, gradings, judgements."""

from __future__ import annotations

import time

from rich.console import Console, Group
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from posttrain.observe.live import LiveLines
from posttrain.observe.phases import PHASES
from posttrain.observe.progress import clock


class JobView:
    """While it is open (`with`): a bar on a terminal, a line every half minute in a file or pipe.

    `update(done, total)` moves the bar; until the first there is none, only the title and what is being done.
    """

    def __init__(self, title: str, console: Console) -> None:
        self.title = title
        self._lines = LiveLines(console, self._frame, self.line)
        self._spinner = Spinner("dots", style="cyan")
        self._began = time.monotonic()
        self._first: tuple[int, float] | None = None  # what was done before, and when that was known
        self._done, self._total = 0, 0

    def update(self, done: int, total: int) -> None:
        """`done` counts what an earlier attempt did, which takes no time now."""
        if self._first is None:
            self._first = (done, time.monotonic())
        self._done, self._total = done, total
        self._lines.redraw()

    def __enter__(self) -> JobView:
        PHASES.listen()
        self._lines.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.stop(wipe=self._total == 0)
        PHASES.forget()

    def line(self) -> str:
        """`gsm8k: generating  48/256   generating 3 of 16, token 87 of at most 256   1:20 left`."""
        head = f"{self.title}  {self._done:,}/{self._total:,}" if self._total else self.title
        return "   ".join([head, *self._at_this_moment()])

    def _at_this_moment(self) -> list[str]:
        words = [PHASES.in_words(), self._time_left()]
        return [word for word in words if word]

    def _time_left(self) -> str:
        now = time.monotonic()
        if self._first is not None and self._done > self._first[0]:
            pace = (now - self._first[1]) / (self._done - self._first[0])
            if self._done < self._total:
                return f"{clock(pace * (self._total - self._done))} left"
        return f"{clock(now - self._began)} so far"

    def _frame(self) -> Group:
        top, now = Table.grid(padding=(0, 2)), Table.grid(padding=(0, 1))
        now.add_row(self._spinner, Text("   ".join(self._at_this_moment()), style="dim"))
        if not self._total:
            return Group(Text(self.title, style="bold"), now)
        top.add_row(
            Text(self.title, style="bold"),
            ProgressBar(total=max(self._total, 1), completed=self._done, width=30),
            Text(f"{self._done:,}/{self._total:,}"),
        )
        return Group(top) if self._done >= self._total else Group(top, now)
