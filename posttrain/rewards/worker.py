"""A worker process: `python -m posttrain.rewards.worker` reads calls from its standard input and answers them.

Messages are pickles behind eight bytes of length. The first names a factory, "module:function", and its arguments;
the factory makes the handler that answers all further messages. What the handler prints goes to standard error. The
process first splits in two: a keeper (descendants.py), and the worker below it.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import signal
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, BinaryIO

from posttrain.rewards.descendants import adopt_orphans, keep

LENGTH = struct.Struct(">Q")


def frame(message: bytes) -> bytes:
    return LENGTH.pack(len(message)) + message


def _read(stream: BinaryIO) -> bytes:
    header = stream.read(LENGTH.size)
    if len(header) < LENGTH.size:
        raise EOFError
    return stream.read(LENGTH.unpack(header)[0])


def _write(stream: BinaryIO, message: Any) -> None:
    stream.write(frame(pickle.dumps(message, protocol=5)))
    stream.flush()


def traceback_beyond(error: BaseException) -> str:
    """The traceback of what a reward raised, without the frames that lead to it; "" where no other is left."""
    here = os.path.dirname(os.path.abspath(__file__))
    callers = {os.path.join(here, f"{name}.py") for name in ("worker", "call", "round", "runner")}
    frame = error.__traceback__
    while frame is not None and os.path.abspath(frame.tb_frame.f_code.co_filename) in callers:
        frame = frame.tb_next
    if frame is None:
        return ""
    return "".join(traceback.format_exception(type(error), error, frame))


def _answer(action: Callable[[], Any]) -> tuple[str, Any]:
    try:
        return "done", action()
    except Exception as error:  # a reward may fail in any way; the parent decides what that means
        return "failed", (f"{type(error).__name__}: {error}", traceback_beyond(error))


def _leave_with_parent() -> None:
    """Ends this process when its keeper is gone, even in the middle of a call."""
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _start(packed: bytes) -> Callable[[Any], Any]:
    message = pickle.loads(packed)
    # In the trainer's order: what a package has put at the end of the path there must not shadow others here.
    sys.path[:] = [*message["path"], *(folder for folder in sys.path if folder not in message["path"])]
    module, _, name = message["factory"].partition(":")
    return vars(importlib.import_module(module))[name](**pickle.loads(message["arguments"]))


def _serve(requests: BinaryIO, replies: BinaryIO) -> None:
    handlers: list[Callable[[Any], Any]] = []

    def handle(packed: bytes) -> Any:
        if handlers:
            return handlers[0](pickle.loads(packed))
        handlers.append(_start(packed))
        return None

    while True:
        packed = _read(requests)
        _write(replies, _answer(lambda packed=packed: handle(packed)))


_OF_THE_RUN = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def _leave_signals_to_the_run() -> None:
    """A batch system signals every process of a job. The run then finishes its step, for which it needs this one, and
    ends it itself. What a reward starts hears them again: a handler, unlike SIG_IGN, does not outlive an exec."""
    for number in _OF_THE_RUN:
        signal.signal(number, lambda *_: None)
    os.register_at_fork(after_in_child=_hear_signals)


def _hear_signals() -> None:
    for number in _OF_THE_RUN:
        signal.signal(number, signal.SIG_DFL)


def main() -> None:
    adopt_orphans()
    worker = os.fork()
    _leave_signals_to_the_run()
    if worker:
        os.closerange(0, 2)  # the trainer is to see the worker's pipes close
        keep(worker)
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, BrokenPipeError):
        _serve(requests, replies)
    sys.stderr.flush()
    os._exit(0)  # a user's threads or atexit hooks must not keep the process


if __name__ == "__main__":
    main()
