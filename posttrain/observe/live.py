"""A few lines that show a long job is alive: redrawn in place on a terminal, printed now and then anywhere else."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from rich.console import Console, RenderableType
from rich.live import Live

SILENCE_S = 30.0
"""How long a log file may stay silent before a line says what is going on."""


class LiveLines:
    """Between `start` and `stop`: draws `frame()` four times a second on a terminal; in a file or pipe prints `line()`
    whenever nothing was printed for `silence_s`. A thread does both, so the job needs not come by."""

    def __init__(
        self,
        console: Console,
        frame: Callable[[], RenderableType],
        line: Callable[[], str],
        *,
        silence_s: float = SILENCE_S,
    ) -> None:
        self._console, self._frame, self._line, self._silence_s = console, frame, line, silence_s
        self._live: Live | None = None
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()
        self._printing = threading.Lock()
        self._due = 0.0

    def start(self) -> None:
        """Again and again does no harm."""
        if self._live is not None or self._thread is not None:
            return
        self.spoke()
        if self._console.is_terminal:
            self._live = Live(console=self._console, get_renderable=self._frame, refresh_per_second=4)
            self._live.start()
            return
        self._stopped.clear()
        # a daemon: a job that dies must not be kept alive by the line that says it lives
        self._thread = threading.Thread(target=self._watch, name="posttrain-view", daemon=True)
        self._thread.start()

    def spoke(self) -> None:
        """Something else was printed: the silence begins anew."""
        self._due = time.monotonic() + self._silence_s

    def redraw(self) -> None:
        """Something changed: drawn now instead of within a quarter of a second, printed where a line is due."""
        if self._live is not None:
            self._live.refresh()
        elif self._thread is not None:
            self._print_if_due()

    def stop(self, *, wipe: bool = False) -> None:
        """Leaves the last frame standing, or with `wipe` nothing."""
        if self._live is not None:
            self._live.transient = wipe
            self._live.stop()
            self._live = None
        if self._thread is not None:
            self._stopped.set()
            self._thread.join()
            self._thread = None

    def _watch(self) -> None:
        while not self._stopped.wait(max(0.01, self._due - time.monotonic())):
            try:
                self._print_if_due()
            except ValueError:  # the file was closed: nobody reads it any more
                return

    def _print_if_due(self) -> None:
        with self._printing:
            if time.monotonic() >= self._due:
                self.spoke()
                self._console.print(self._line(), soft_wrap=True, highlight=False, markup=False)
