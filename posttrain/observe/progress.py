"""Live progress of a run: a bar, the numbers that tell whether it learns, and what is being done at this moment.

On a terminal three lines are redrawn in place; anywhere else (CI, a log file) one plain line is printed every few
steps, and one after half a minute without any. Knows no trainer: whoever logs calls `update`, whoever works says in
process/phases.py what it does.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, Group
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from posttrain.observe.live import LiveLines
from posttrain.process.phases import PHASES

# label, metric names in order of preference, format
_FIELDS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("reward", ("reward",), ".3f"),
    ("accuracy", ("accuracy", "rewards/accuracies"), ".3f"),
    ("token accuracy", ("mean_token_accuracy",), ".3f"),
    ("held-out", ("eval_accuracy", "eval_reward", "eval_loss"), ".3f"),
    ("loss", ("loss",), ".4f"),
    ("entropy", ("entropy",), ".3f"),
    ("kl", ("kl",), ".4f"),
)
_SPARKS = "▁▂▃▄▅▆▇█"


_QUIET_S = 5.0
"""After this long without a word from whoever works, the view says how long ago the last one was."""


class ProgressView:
    """What is known of the run so far. Opened (`with`, or `open`), it shows that the run is alive until `close`.

    enabled  False on every rank but 0: then nothing is ever printed
    every    steps between two plain lines; None picks about twenty lines per run
    """

    def __init__(
        self,
        title: str = "",
        *,
        enabled: bool = True,
        console: Console | None = None,
        every: int | None = None,
    ) -> None:
        self.title = title
        self.enabled = enabled
        self.console = console or Console()
        self.every = every
        self._latest: dict[str, Any] = {}
        self._measured = 0  # step of the last held-out measurement
        self._history: dict[str, deque[float]] = {}
        self._clock: deque[tuple[int, float]] = deque(maxlen=20)  # recent (step, time): pace, not average
        self._step = 0
        self._printed = -1
        self._total = 0
        self._began = time.monotonic()
        self._since = self._began  # of the last step that was logged
        self._lines = LiveLines(self.console, self._frame, self._signs_of_life)
        self._spinner = Spinner("dots", style="cyan")
        self._is_open = False

    def open(self) -> ProgressView:
        """Shows from now on what is being done, also before the first step and within a long one."""
        if self.enabled and not self._is_open:
            self._is_open = True
            PHASES.listen()
            self._lines.start()
        return self

    def start_clock(self) -> ProgressView:
        """Training begins now: what came before is not part of how long it took."""
        self._began = self._since = time.monotonic()
        return self.open()

    def update(self, step: int, total: int, metrics: Mapping[str, Any]) -> None:
        """Metrics absent from this call keep their last value: rewards arrive on rollout steps only."""
        if not self.enabled:
            return
        self._step, self._total, self._since = step, total, time.monotonic()
        if not self._clock or self._clock[-1][0] < step:
            self._clock.append((step, time.monotonic()))
        for name, value in metrics.items():
            if value is not None:
                self._latest[name] = value
                if name.startswith("eval_"):
                    self._measured = step
        for name in ("reward", "loss"):
            if metrics.get(name) is not None:
                self._history.setdefault(name, deque(maxlen=24)).append(float(metrics[name]))
        if self.console.is_terminal:
            self.open()
            self._lines.redraw()
        elif self._is_due():
            self._printed = step
            self._lines.spoke()
            self.console.print(self.line(), soft_wrap=True, highlight=False, markup=False)

    def message(self, text: str) -> None:
        """A line above the bar: a warning, an evaluation's result."""
        if self.enabled:
            self._lines.spoke()
            self.console.print(text, highlight=False, markup=False)

    def close(self) -> None:
        if self._is_open:
            self._is_open = False  # the last frame speaks of the run, not of the moment
            self._lines.stop(wipe=self._total == 0)
            PHASES.forget()

    def __enter__(self) -> ProgressView:
        return self.open()

    def __exit__(self, *_: object) -> None:
        self.close()

    def fields(self) -> list[tuple[str, str]]:
        """(label, value) of what the run has logged so far, in a fixed order."""
        shown = []
        for label, names, form in _FIELDS:
            if label == "loss" and "reward" in self._latest:
                continue  # the surrogate's value says nothing about learning
            name = next((n for n in names if n in self._latest), None)
            if name is not None:
                value = format(float(self._latest[name]), form)
                if label == "held-out" and self._measured != self._step:
                    value += f" (step {self._measured})"  # or an old number reads as today's
                shown.append((label, value))
        return shown + _bounds(self._latest)

    def line(self) -> str:
        """One plain line: `step 40/120  reward 0.713 ...  8,120 tok/s  1:20 left`."""
        width = len(str(self._total))
        parts = [f"step {self._step:>{width}}/{self._total}"]
        parts += [f"{label} {value}" for label, value in self.fields()]
        return "  ".join([self.title, *parts, *self._pace()] if self.title else [*parts, *self._pace()])

    def seconds_left(self) -> float | None:
        """From the pace of the last steps; None before two steps are known."""
        if len(self._clock) < 2:
            return None
        (first, began), (last, ended) = self._clock[0], self._clock[-1]
        return (ended - began) / (last - first) * max(0, self._total - self._step)

    def _pace(self) -> list[str]:
        pace = []
        if "tokens_per_second" in self._latest:
            pace.append(f"{float(self._latest['tokens_per_second']):,.0f} tok/s")
        if "resample/taught_tokens_per_second" in self._latest:
            pace.append(f"{float(self._latest['resample/taught_tokens_per_second']):,.0f} taught")
        left = self.seconds_left()
        if self._step >= self._total > 0:
            pace.append(f"done in {clock(time.monotonic() - self._began)}")
        elif left is not None:
            pace.append(f"{clock(left)} left")
        return pace

    def _is_due(self) -> bool:
        every = self.every or max(1, self._total // 20)
        wanted = self._step % every == 0 or self._step == self._total or self._printed < 0
        return wanted and self._step != self._printed

    def _at_this_moment(self) -> str:
        """`generating 312 of 640   0:41 since step 3`."""
        now = time.monotonic()
        where = f"step {self._step}" if self._total else "the start"
        words = [PHASES.in_words() or "working", f"{clock(now - self._since)} since {where}"]
        if now - PHASES.touched >= _QUIET_S and PHASES.touched - self._since >= 1:
            words.append(f"last sign of life {clock(now - PHASES.touched)} ago")
        return "   ".join(words)

    def _signs_of_life(self) -> str:
        """The plain line after a silence: with the run's numbers where there are new ones."""
        if self._total and self._printed != self._step:
            self._printed = self._step
            return f"{self.line()}   {self._at_this_moment()}"
        head = [self.title] if self.title else []
        head += [f"step {self._step}/{self._total}"] if self._total else []
        return "  ".join([*head, self._at_this_moment()])

    def _frame(self) -> Group:
        now = Table.grid(padding=(0, 1))
        now.add_row(self._spinner, Text(self._at_this_moment(), style="dim"))
        if not self._total:
            return Group(Text(self.title, style="bold"), now)
        return Group(*self._numbers(), *([now] if self._is_open else []))

    def _numbers(self) -> tuple[Table, Text]:
        top = Table.grid(padding=(0, 2))
        top.add_row(
            Text(self.title, style="bold"),
            ProgressBar(total=max(self._total, 1), completed=self._step, width=30),
            Text(f"{self._step}/{self._total}"),
            Text("   ".join(self._pace()), style="cyan"),
        )
        below = Text()
        for label, value in self.fields():
            below.append(f"{label} ", style="dim").append(value, style="bold")
            if label in self._history and len(self._history[label]) > 3:
                below.append(" " + sparkline(self._history[label]), style="green")
            below.append("   ")
        return top, below


def sparkline(values: Sequence[float] | deque[float]) -> str:
    """A curve in as many characters as values; a flat curve is drawn at the bottom."""
    finite = [v for v in values if v == v]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    span = high - low or 1.0
    top = len(_SPARKS) - 1
    return "".join(_SPARKS[round((v - low) / span * top)] if v == v else " " for v in values)


def clock(seconds: float) -> str:
    """75 -> `1:15`, 4000 -> `1:06:40`."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"


def _bounds(latest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Bounds of the ratio and the positive share, for the methods that log them as METHOD/clip_low."""
    shown = []
    for name in latest:
        method, _, key = name.rpartition("/")
        if key == "clip_low" and f"{method}/clip_high" in latest:
            shown.append(("bounds", f"{float(latest[name]):.2f}-{float(latest[f'{method}/clip_high']):.2f}"))
            if f"{method}/positive_share" in latest:
                shown.append(("share", format(float(latest[f"{method}/positive_share"]), ".3f")))
    return shown
