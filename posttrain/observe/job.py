"""A job with a known end that is no training run: loading a model, an evaluation's responses, gradings, judgements."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console, Group
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from posttrain.observe.live import SILENCE_S, LiveLines
from posttrain.observe.progress import clock
from posttrain.process.phases import PHASES


class JobView:
    """While it is open (`with`): a bar on a terminal, a line now and then in a file or pipe, both with what is being
    done at this moment (phases.py).

    total      what there is to do; 0 draws no bar
    rate       (done, total) to words about the pace
    silence_s  between two lines in a file or pipe
    """

    def __init__(
        self,
        title: str,
        console: Console,
        total: int = 0,
        *,
        rate: Callable[[int, int], str] = lambda done, total: "",
        silence_s: float = SILENCE_S,
    ) -> None:
        self.title = title
        self._lines = LiveLines(console, self._frame, self.line, silence_s=silence_s)
        self._spinner = Spinner("dots", style="cyan")
        self._began = time.monotonic()
        self._rate = rate
        self._done, self._total = 0, total

    def update(self, done: int, total: int) -> None:
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
        """`gsm8k: generating: 48 of 256, 1.2/s, 3 min left   generating 3 of 16, token 87 of at most 256`."""
        pace = self._rate(self._done, self._total)
        head = f"{self.title}: {self._done:,} of {self._total:,}" if self._total else self.title
        return "   ".join([f"{head}, {pace}" if pace else head, *self._at_this_moment()])

    def _at_this_moment(self) -> list[str]:
        words = PHASES.in_words()
        return [
            *([words] if words else []),
            *([] if self._done else [f"{clock(time.monotonic() - self._began)} so far"]),
        ]

    def _frame(self) -> Group:
        top, now = Table.grid(padding=(0, 2)), Table.grid(padding=(0, 1))
        now.add_row(self._spinner, Text("   ".join(self._at_this_moment()), style="dim"))
        if not self._total:
            return Group(Text(self.title, style="bold"), now)
        top.add_row(
            Text(self.title, style="bold"),
            ProgressBar(total=self._total, completed=self._done, width=30),
            Text(f"{self._done:,}/{self._total:,}"),
            Text(self._rate(self._done, self._total), style="cyan"),
        )
        return Group(top) if self._done >= self._total else Group(top, now)
