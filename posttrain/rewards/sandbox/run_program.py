"""Starting programs in an enclosure and watching them: time, output, end. Any thread may; each waits for its own."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, Literal

from posttrain.rewards.descendants import end_descendants, new_mark
from posttrain.rewards.sandbox.enclosure import Enclosure, warden_plan
from posttrain.rewards.sandbox.limits import ProgramLimits
from posttrain.rewards.sandbox.warden import remove_folder

_GRACE_S = 5.0
"""What a warden may take to end its program before it is ended itself."""
_START_S = 60.0
"""What an enclosure may take to be made, on a machine with much else to do: not the program's time."""
_LOOK_S = 0.05

_READY = b"ready"
"""What the first code inside reports once its limits are set."""

_HERE = __name__.rpartition(".")[0]
_ROOT = str(Path(__file__).resolve().parents[3])
_PYTHON = ("-s", "-S", "-P", "-B")
"""No packages, no user's folder, no file of bytecode."""


class SandboxError(RuntimeError):
    """The enclosure could not be made: nothing has been run."""


@dataclass(frozen=True)
class ProgramEnd:
    """How a program ended.

    reason   "exit" by itself, "timeout", "output" (more than is read), or "stopped" by who started it
    code     exit code, as a shell gives it (128 and the signal's number); None where it was ended
    output   of standard output, at most the limit; `errors` the same of standard error
    """

    reason: Literal["exit", "timeout", "output", "stopped"]
    code: int | None
    output: bytes
    errors: bytes
    seconds: float


class RunningProgram:
    """A program from start to end: `wait`, or `look` now and then, and `end`; a context manager ends it too.

    entry      "module:function" of our code for the inside, called with `argument`
    modules    names of those modules of ours it takes, in the order of their imports
    stdin      what it reads
    pipes      descriptors it keeps
    """

    def __init__(
        self,
        enclosure: Enclosure,
        limits: ProgramLimits,
        entry: str,
        argument: dict[str, Any],
        *,
        modules: Sequence[str],
        stdin: bytes = b"",
        pipes: Sequence[int] = (),
        reads_output: bool = True,
    ):
        self._limits = limits
        self._mark = new_mark()
        self._folder = _make_folder() if enclosure.kind == "plain" else None
        self._began = time.monotonic()
        payload = {
            "modules": {name: source_of(name) for name in modules},
            "entry": entry,
            "argument": argument,
        }
        report, its_report = os.pipe()
        try:
            with _file_of(json.dumps(payload).encode()) as packed, _file_of(stdin) as given:
                plan = warden_plan(
                    enclosure,
                    limits,
                    payload=packed.fileno(),
                    report=its_report,
                    mark=self._mark,
                    folder=self._folder,
                )
                kept = (packed.fileno(), its_report, *pipes)
                self._process = self._start(plan, given, kept, reads_output)
        except OSError as error:  # no process, no memory, no other user to be had
            remove_folder(self._folder)
            os.close(report)
            raise SandboxError(f"sandbox: the program could not be started: {error}") from error
        finally:
            os.close(its_report)
        self._is_over = False
        self._report = os.fdopen(report, "rb", buffering=0)
        self._said = b""
        self._ready_at: float | None = None
        self.output, self.errors = bytearray(), bytearray()
        self._reason: Literal["exit", "timeout", "output", "stopped"] | None = None
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._report, selectors.EVENT_READ, None)
        for stream, kept in ((self._process.stdout, self.output), (self._process.stderr, self.errors)):
            if stream is not None:
                self._selector.register(stream, selectors.EVENT_READ, kept)

    def _start(
        self, plan: dict[str, Any], stdin: IO[bytes], kept: Sequence[int], reads_output: bool
    ) -> subprocess.Popen[bytes]:
        if self._folder is not None and plan["user"] is not None:
            os.chown(self._folder, plan["user"], plan["user"])
        output = subprocess.PIPE if reads_output else subprocess.DEVNULL
        return subprocess.Popen(
            [sys.executable, *_PYTHON, "-m", f"{_HERE}.warden", json.dumps(plan)],
            stdin=stdin,
            stdout=output,
            stderr=output,
            pass_fds=kept,
            env={"PYTHONPATH": _ROOT},
            cwd="/",
            start_new_session=True,
        )

    def wait(self) -> ProgramEnd:
        """Until it has ended or its time is over; then it is ended. SandboxError where it never ran."""
        with self:
            while self._reason is None:
                self.look(_LOOK_S)
        return self.ended()

    def look(self, seconds: float) -> None:
        """Reads what it has said, for so long at most, and notices its end."""
        remaining = self._remaining()
        self._read(max(0.0, min(seconds, remaining)))
        if self._reason is not None:
            return
        if max(len(self.output), len(self.errors)) > self._limits.output_bytes:
            self._reason = "output"
        elif self._process.poll() is not None:
            self._reason = "exit"
        elif remaining <= 0:
            self._reason = "timeout"

    def _remaining(self) -> float:
        """Seconds it has left; until it is ready, those its start has left."""
        if self._ready_at is None:
            return self._began + _START_S - time.monotonic()
        return self._ready_at + self._limits.seconds - time.monotonic()

    @property
    def is_ready(self) -> bool:
        """Whether its first line has been reached, as far as has been looked."""
        return self._ready_at is not None

    def begin_anew(self) -> None:
        """Its time begins now: what it works with was not there before."""
        if self._ready_at is not None:
            self._ready_at = time.monotonic()

    @property
    def has_ended(self) -> bool:
        return self._reason is not None

    def _read(self, seconds: float) -> None:
        if not self._selector.get_map():
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=seconds)
            return
        for key, _ in self._selector.select(seconds):
            chunk = os.read(key.fd, 1 << 16)
            if not chunk:
                self._selector.unregister(key.fileobj)
            elif key.data is None:
                self._said += chunk[:1000]
                if self._ready_at is None and self._said.startswith(_READY):
                    self._ready_at = time.monotonic()
            elif len(key.data) <= self._limits.output_bytes:
                key.data.extend(chunk)

    def end(self) -> None:
        """Ends it and whatever it has started; what it had said before is read. A second time does nothing."""
        if self._is_over:
            return
        self._is_over = True
        if self._reason is None:
            self._reason = "stopped"
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(timeout=_GRACE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._process.returncode < 0:  # the warden itself was killed, by its program or for memory
            end_descendants(self._process.pid, self._mark)
        if self._reason != "output":
            self._drain()
        self._selector.close()
        for stream in (self._report, self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()
        remove_folder(self._folder)

    def _drain(self) -> None:
        """What still lies in the pipes, whose other ends are closed."""
        end = time.monotonic() + 1.0
        while self._selector.get_map() and time.monotonic() < end:
            self._read(0.1)

    def ended(self) -> ProgramEnd:
        """Once it has been ended."""
        assert self._reason is not None
        if self._ready_at is None:
            said = (self._said or bytes(self.errors[-500:])).decode(errors="replace").strip()
            if self._reason in ("timeout", "stopped") and not said:
                said = "it took too long to start"
            raise SandboxError(f"sandbox: the program could not be enclosed: {said or 'no reason was given'}")
        limit = self._limits.output_bytes
        if self._reason == "exit" and max(len(self.output), len(self.errors)) > limit:
            self._reason = "output"
        code = self._process.returncode if self._reason == "exit" else None
        return ProgramEnd(
            self._reason,
            code,
            bytes(self.output[:limit]),
            bytes(self.errors[:limit]),
            time.monotonic() - self._ready_at,
        )

    def __enter__(self) -> RunningProgram:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


def run_script(sources: Sequence[str], stdin: str, limits: ProgramLimits, enclosure: Enclosure) -> ProgramEnd:
    """Runs a program, the first of `sources` that compiles, on one input."""
    running = RunningProgram(
        enclosure,
        limits,
        f"{_HERE}.program:main",
        {"sources": list(sources)},
        modules=[f"{_HERE}.program"],
        stdin=stdin.encode("utf-8", "surrogatepass"),
    )
    return running.wait()


# ---- files and folders


def source_of(module: str) -> str:
    """The text of a module of ours, without importing it."""
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).read_text(encoding="utf-8")


@contextlib.contextmanager
def _file_of(content: bytes) -> Iterator[IO[bytes]]:
    """An open file without a name: read by the program at its own pace, so that no pipe has to be fed."""
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.seek(0)
        yield file


def _make_folder() -> str:
    return tempfile.mkdtemp(prefix="posttrain-program-")
