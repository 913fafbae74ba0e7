"""Who asks a run to stop, and what it does then: Ctrl-C, SIGTERM, SIGHUP, SIGUSR1 (Slurm's warning), a closed pipe.

    before the first step   the command ends in one line; nothing is in hand
    between steps           the step is finished and saved, then the run ends (trainers/seam/stopping.py)
    asked a second time     it ends at once, in one line; within a second only Ctrl-C counts as a second time, because
                            batch systems signal every process of a job, and launchers pass on what they were sent

No torch: `posttrain train` listens from its first second.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from posttrain.process import exit_codes, launched

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
_NAMES = {
    signal.SIGINT: "Ctrl-C",
    signal.SIGTERM: "SIGTERM",
    signal.SIGHUP: "SIGHUP",
    signal.SIGUSR1: "SIGUSR1",
}
_PIPE = "its output was closed"
_ECHO_S = 1.0
"""A signal so soon after the first is taken for the same request, by another way."""


class Stopped(KeyboardInterrupt):
    """Asked to stop where nothing is in hand. A KeyboardInterrupt, so that nothing takes it for an error."""


class StopRequests:
    """The process's own state: who asked, and whom to tell."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self.tell: Callable[[str], None] | None = None
        """Called at the first request instead of raising `Stopped`; set while a trainer takes steps."""
        self.ending = False
        """The steps are done and the model is being saved: a pipe that closes now changes nothing."""
        self.last_words: Callable[[], str] = lambda: "stopped at once"
        """Said when a second request ends the process; "" says nothing."""
        self.outputs_closed: set[int] = set()
        self.ended: int | None = None
        """The exit code, once all is said: a launcher that tells its processes to end changes nothing then."""
        self.said = ""
        """The last words of a run that ended in an orderly way."""
        self._pipe_closed = False
        self._listens = False
        self._asked_at = 0.0

    def listen(self) -> dict[signal.Signals, Any]:
        """Handles the signals from now on; returns what did before. In the main thread only."""
        if threading.current_thread() is not threading.main_thread():
            return {}
        before = {}
        for number in SIGNALS:
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # nohup: the run is to outlive its terminal
            before[number] = signal.signal(number, self._handle)
        if not self._listens:
            self._listens = True
            os.register_at_fork(after_in_child=_forget)
        return before

    def forget(self, before: dict[signal.Signals, Any]) -> None:
        """Hands the signals back to what handled them, for a process that goes on: a notebook's, a test's."""
        for number, handler in before.items():
            signal.signal(number, handler)
        self.reason = self.tell = self.ended = None
        self.ending = False

    def end(self, code: int) -> None:
        """The process leaves with this code, whatever a launcher sends it while it does."""
        self.ended = code
        if self._listens:
            self.listen()

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        name = _NAMES[signal.Signals(number)]
        if self._pipe_closed:
            self._pipe_closed, name = False, _PIPE
        echo = number != signal.SIGINT and time.monotonic() - self._asked_at < _ECHO_S
        if self.reason is not None and self.ended is None and echo:
            return
        self.ask(name)

    def ask(self, name: str) -> None:
        if self.reason is not None or self.ended is not None:
            self._at_once(name)
        self.reason, self._asked_at = name, time.monotonic()
        if self.tell is None:
            raise Stopped(name)
        self.tell(name)

    def _at_once(self, name: str) -> None:
        """Without unwinding, which may wait for an engine or another rank: the second request means it."""
        try:
            if self.ended is None and (words := self.last_words()):
                os.write(2, f"\n{words} ({name})\n".encode())
                launched.end(exit_codes.STOPPED, words)
        finally:
            os._exit(exit_codes.STOPPED if self.ended is None else self.ended)

    def output_closed(self, descriptor: int) -> None:
        """Nobody reads this output any more: from now on it goes nowhere, and the run is asked to stop, once."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)
        first = not self.outputs_closed
        self.outputs_closed.add(descriptor)
        if first and not self.ending and self.reason is None:
            self._pipe_closed = True
            signal.raise_signal(signal.SIGTERM)  # handled in the main thread, whichever thread was writing


REQUESTS = StopRequests()


def _forget() -> None:
    """A forked helper (a data loader's, a tokenizer's) is ended by SIGTERM as ever."""
    for number in SIGNALS:
        if signal.getsignal(number) not in (signal.SIG_IGN, None):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


class _Guarded(io.FileIO):
    """An output that notices when its reader has gone, instead of failing."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            REQUESTS.output_closed(self.fileno())
            return len(data)


def guard_outputs() -> None:
    """stdout and stderr of this process no longer fail when `| head` has seen enough: the run is asked to stop."""
    for name in ("stdout", "stderr"):
        stream = vars(sys)[name]
        if stream is not vars(sys)[f"__{name}__"] or stream is None or stream.closed:
            continue  # a test's, or a notebook's, own
        stream.flush()
        guarded = io.TextIOWrapper(
            io.BufferedWriter(_Guarded(stream.fileno(), "w", closefd=False)),
            encoding=stream.encoding,
            errors=stream.errors,
            line_buffering=True,
        )
        setattr(sys, name, guarded)
