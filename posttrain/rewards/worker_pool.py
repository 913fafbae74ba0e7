"""Worker processes with a deadline for every call.

Plain subprocesses over pipes, not multiprocessing: nothing re-imports the user's script, a hung call is killed, and
one event loop in one thread watches all workers, so that Ctrl-C works and nothing is left behind.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import pickle
import selectors
import signal
import subprocess
import sys
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from posttrain.rewards.descendants import MARK, end_descendants, new_mark
from posttrain.rewards.worker import LENGTH, frame

_KEEPER_S = 3.0
_RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class WorkerStartError(RuntimeError):
    """A worker could not load what it is to call; calling again would not help.

    `reported`: the worker lived to say why; otherwise it died or took too long.
    """

    def __init__(self, pool: WorkerPool, reason: str, reported: bool):
        super().__init__(reason)
        self.pool, self.reported = pool, reported


@dataclass(frozen=True)
class Outcome:
    """What became of one call. `message` says what failed or how the worker ended, `detail` is a traceback."""

    result: Any = None
    failure: Literal["error", "timeout"] | None = None
    message: str = ""
    detail: str = ""
    seconds: float = 0.0


class _Worker:
    """One process: off -> starting -> idle <-> busy."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.state: Literal["off", "starting", "idle", "busy"] = "off"
        self.task: Task | None = None
        self.began = self.deadline = 0.0
        self.outgoing = memoryview(b"")
        self.incoming = bytearray()
        self.mark = ""

    def start(self, message: bytes, timeout_s: float) -> None:
        root = str(Path(__file__).resolve().parents[2])
        environment = {key: value for key, value in os.environ.items() if key not in _RANK_VARIABLES}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        environment.setdefault("OMP_NUM_THREADS", "1")
        self.mark = environment[MARK] = new_mark()
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "posttrain.rewards.worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, bufsize=0,
            start_new_session=True,  # Ctrl-C is the parent's business, and a kill reaches what the reward started
        )  # fmt: skip
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdin.fileno(), False)
        os.set_blocking(self.process.stdout.fileno(), False)
        self.state = "starting"
        self._send(message, timeout_s)

    def call(self, task: Task, timeout_s: float) -> None:
        self.state, self.task = "busy", task
        self._send(task.message, timeout_s)

    def _send(self, message: bytes, timeout_s: float) -> None:
        self.incoming.clear()
        self.outgoing = memoryview(frame(message))
        self.began = time.monotonic()
        self.deadline = self.began + timeout_s

    def write(self) -> None:
        assert self.process is not None
        assert self.process.stdin is not None
        try:
            self.outgoing = self.outgoing[os.write(self.process.stdin.fileno(), self.outgoing[: 1 << 16]) :]
        except BlockingIOError:
            pass
        except BrokenPipeError:
            self.outgoing = memoryview(b"")  # it died; reading will say how

    def read(self) -> tuple[str, Any] | None:
        """A complete reply, or None for now. Raises EOFError when the process is gone."""
        assert self.process is not None
        assert self.process.stdout is not None
        try:
            chunk = os.read(self.process.stdout.fileno(), 1 << 20)
        except BlockingIOError:
            return None
        if not chunk:
            raise EOFError
        self.incoming += chunk
        if len(self.incoming) < LENGTH.size:
            return None
        size = LENGTH.unpack_from(self.incoming)[0]
        if len(self.incoming) < LENGTH.size + size:
            return None
        return pickle.loads(self.incoming[LENGTH.size : LENGTH.size + size])

    def ending(self) -> str:
        """How a process that closed its pipe ended."""
        assert self.process is not None
        try:
            code = self.process.wait(timeout=2.0)
        except subprocess.TimeoutExpired:
            return "the worker process closed its pipe"
        if code < 0:
            return f"the worker process was killed by {signal.Signals(-code).name}"
        return f"the worker process exited with code {code}"

    def kill(self) -> None:
        """Ends the process and whatever it started, at once; also what opened a session of its own."""
        process, self.process = self.process, None
        self.state, self.task = "off", None
        if process is None:
            return
        try:
            # The keeper outlives the worker by as long as it takes to bury it.
            process.wait(timeout=_KEEPER_S if end_descendants(process.pid, self.mark) else 0.0)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


@dataclass
class Task:
    """One call: its message, and who is told what became of it."""

    message: bytes
    done: Callable[[Outcome], None]


@dataclass(eq=False)
class WorkerPool:
    """Workers that all run one handler, made by `factory` ("module:function", called with `arguments`).

    Started when first needed and again after a crash or a kill; `timeout_s` bounds each call, `startup_timeout_s`
    each start (imports included).
    """

    factory: str
    arguments: dict[str, Any]
    workers: int = 1
    timeout_s: float = 30.0
    startup_timeout_s: float = 300.0
    queue: deque[Task] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self._workers = [_Worker() for _ in range(self.workers)]
        self._owner = os.getpid()
        _open_pools.add(self)

    def submit(self, payload: Any, done: Callable[[Outcome], None]) -> None:
        """Queues one call; `run_pools` makes it."""
        self.queue.append(Task(pack(payload), done))

    def start(self, only: int | None = None) -> None:
        """Starts the workers that are off, as many as there are calls waiting, or `only` so many."""
        wanted = len(self.queue) if only is None else only
        ready = sum(worker.state in ("starting", "idle") for worker in self._workers)
        for worker in self._workers:
            if ready >= wanted:
                return
            if worker.state == "off":
                worker.start(self._hello(), self.startup_timeout_s)
                ready += 1

    def _hello(self) -> bytes:
        return pack({"path": list(sys.path), "factory": self.factory, "arguments": pack(self.arguments)})

    @property
    def unfinished(self) -> bool:
        return bool(self.queue) or any(worker.state == "busy" for worker in self._workers)

    @property
    def starting(self) -> bool:
        return any(worker.state == "starting" for worker in self._workers)

    def dispatch(self) -> None:
        """Gives waiting calls to idle workers."""
        self.start()
        for worker in self._workers:
            if worker.state == "idle" and self.queue:
                worker.call(self.queue.popleft(), self.timeout_s)

    def active(self) -> list[_Worker]:
        return [worker for worker in self._workers if worker.state in ("starting", "busy")]

    def on_readable(self, worker: _Worker) -> None:
        try:
            reply = worker.read()
        except EOFError:
            how = worker.ending()
            self._ended(worker, "error", how)
            return
        if reply is None:
            return
        status, content = reply
        seconds, task = time.monotonic() - worker.began, worker.task
        if worker.state == "starting":
            if status == "failed":
                worker.kill()
                raise WorkerStartError(self, content[1], reported=True)
            worker.state = "idle"
            return
        worker.state, worker.task = "idle", None
        assert task is not None
        if status == "failed":
            task.done(Outcome(failure="error", message=content[0], detail=content[1], seconds=seconds))
        else:
            task.done(Outcome(result=content, seconds=seconds))

    def on_deadline(self, worker: _Worker) -> None:
        limit = self.startup_timeout_s if worker.state == "starting" else self.timeout_s
        self._ended(worker, "timeout", f"no result within {limit:g} s; the worker process was killed")

    def _ended(self, worker: _Worker, failure: Literal["error", "timeout"], how: str) -> None:
        starting, task = worker.state == "starting", worker.task
        seconds = time.monotonic() - worker.began
        worker.kill()
        if starting:
            raise WorkerStartError(self, f"while starting: {how}", reported=False)
        assert task is not None
        task.done(Outcome(failure=failure, message=how, seconds=seconds))

    def abandon(self) -> None:
        """Drops waiting calls and kills workers in the middle of one."""
        self.queue.clear()
        for worker in self.active():
            worker.kill()

    def close(self) -> None:
        """Ends all workers."""
        self.queue.clear()
        if os.getpid() == self._owner:  # a forked child must leave them to its parent
            for worker in self._workers:
                worker.kill()


_open_pools: weakref.WeakSet[WorkerPool] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for pool in list(_open_pools):
        pool.close()


def pack(message: Any) -> bytes:
    """A pickle; by dill where pickle cannot (closures, lambdas, classes of a script)."""
    try:
        return pickle.dumps(message, protocol=5)
    except (pickle.PicklingError, AttributeError, TypeError):
        import dill

        return dill.dumps(message, recurse=True)


def run_pools(pools: Sequence[WorkerPool]) -> None:
    """Makes all queued calls of all pools, each worker one call at a time, until none is left."""
    with _killing_on_exception(pools):
        for pool in pools:
            pool.dispatch()
        while any(pool.unfinished for pool in pools):
            _wait([(pool, worker) for pool in pools for worker in pool.active()])
            for pool in pools:
                pool.dispatch()


def start_pools(pools: Sequence[WorkerPool]) -> None:
    """Starts one worker of each pool and waits until it is ready. Raises WorkerStartError."""
    with _killing_on_exception(pools):
        for pool in pools:
            pool.start(only=1)
        while any(pool.starting for pool in pools):
            _wait([(pool, worker) for pool in pools for worker in pool.active()])


@contextmanager
def _killing_on_exception(pools: Sequence[WorkerPool]) -> Iterator[None]:
    """An interrupted call leaves its worker in an unknown state (Ctrl-C included), so that worker goes."""
    try:
        yield
    except BaseException:
        for pool in pools:
            pool.abandon()
        raise


def _wait(active: list[tuple[WorkerPool, _Worker]]) -> None:
    """Waits for the next event of any worker and handles all that have come."""
    now = time.monotonic()
    with selectors.DefaultSelector() as selector:
        for pool, worker in active:
            assert worker.process is not None
            assert worker.process.stdin is not None
            assert worker.process.stdout is not None
            selector.register(worker.process.stdout, selectors.EVENT_READ, (pool, worker))
            if worker.outgoing:
                selector.register(worker.process.stdin, selectors.EVENT_WRITE, (pool, worker))
        soonest = min(worker.deadline for _, worker in active)
        events = selector.select(max(0.0, soonest - now))
    for key, mask in events:
        pool, worker = key.data
        if worker.process is None:
            continue
        if mask & selectors.EVENT_WRITE:
            worker.write()
        else:
            pool.on_readable(worker)
    now = time.monotonic()
    for pool, worker in active:
        if worker.state in ("starting", "busy") and now >= worker.deadline:
            pool.on_deadline(worker)
