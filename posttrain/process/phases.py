"""What a run is doing at this moment, said by whoever does it and read by the live view.

    PHASES.say("forward", 3, 8)                      # until the next `say`
    with PHASES.within("generating", 640) as phase:  # until the block ends
        phase.at(312, "token 87 of at most 256")

Costs a comparison where nobody reads it: every process but the one with a view. No torch.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Phase:
    """A word for what is done, how much of it, and what else is known."""

    name: str
    done: int | None = None
    total: int | None = None
    detail: str = ""

    def __str__(self) -> str:
        """`generating 312 of 640, token 87 of at most 256`."""
        words = self.name
        if self.done is not None:
            words += f" {self.done:,}" + (f" of {self.total:,}" if self.total is not None else "")
        elif self.total is not None:
            words += f" {self.total:,}"
        return f"{words}, {self.detail}" if self.detail else words


class Open:
    """A phase that lasts as long as its `with` block; `at` may be called from any thread."""

    def __init__(self, phases: Phases, thread: int, depth: int) -> None:
        self._phases, self._thread, self._depth = phases, thread, depth

    def at(self, done: int, detail: str = "") -> None:
        """How much is done by now."""
        self._phases._move(self._thread, self._depth, done, detail)


class Phases:
    """The process's phases: of the main thread a stack, of threads beside it (rounds generated ahead) one each.

    listening  whether anybody reads them; until then nothing is kept
    touched    when something was last said, on the monotonic clock
    """

    def __init__(self) -> None:
        self.listening = False
        self.touched = time.monotonic()
        self._stacks: dict[int, tuple[Phase, ...]] = {}

    def listen(self) -> None:
        self.listening = True
        self.touched = time.monotonic()

    def forget(self) -> None:
        """Nobody reads any more."""
        self.listening = False
        self._stacks = {}

    def say(self, name: str, done: int | None = None, total: int | None = None, detail: str = "") -> None:
        """From now on this is done, in place of what this thread's innermost block said before."""
        if self.listening:
            thread = threading.get_ident()
            before = self._stacks.get(thread, ())
            self._put(thread, (*before[:-1], Phase(name, done, total, detail)))

    @contextmanager
    def within(self, name: str, total: int | None = None) -> Iterator[Open]:
        """While the block lasts this is done; afterwards what was said before counts again."""
        thread = threading.get_ident()
        if not self.listening:
            yield Open(self, thread, -1)
            return
        before = self._stacks.get(thread, ()) or (Phase(""),)  # the lowest level is `say`'s
        self._put(thread, (*before, Phase(name, total=total)))
        try:
            yield Open(self, thread, len(before))
        finally:
            self._put(thread, before)

    def in_words(self) -> str:
        """What is done now; "" where nothing was said."""
        stacks = dict(self._stacks)
        main = _shown(stacks.pop(threading.main_thread().ident or 0, ()))
        beside = [words for words in map(_shown, stacks.values()) if words]
        if not beside:
            return main
        return f"{main}; beside it: {', '.join(beside)}" if main else ", ".join(beside)

    def _put(self, thread: int, stack: tuple[Phase, ...]) -> None:
        self.touched = time.monotonic()
        if thread != threading.main_thread().ident and not any(phase.name for phase in stack):
            self._stacks.pop(thread, None)  # the thread may be gone, and its number another's
        elif self.listening:
            self._stacks[thread] = stack

    def _move(self, thread: int, depth: int, done: int, detail: str) -> None:
        stack = self._stacks.get(thread, ()) if self.listening else ()
        if 0 <= depth < len(stack):
            moved = replace(stack[depth], done=done, detail=detail)
            self._put(thread, (*stack[:depth], moved, *stack[depth + 1 :]))


PHASES = Phases()


def _shown(stack: tuple[Phase, ...]) -> str:
    """The blocks that are open, the outermost first; what `say` said below them only where none is."""
    open_blocks = [str(phase) for phase in stack[1:] if phase.name]
    return ": ".join(open_blocks) if open_blocks else str(stack[0]) if stack else ""
