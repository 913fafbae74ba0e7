"""What every drill needs: a small run in a folder of its own, its processes, and how they ended."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

LIMIT_S = 240.0
"""No process of a drill lives longer."""
STEPS = 8

RECIPE = """
method: bapo
model: {{scratch: {{hidden_size: 32, layers: 2, heads: 2, max_positions: 64}}}}
data: {{name: sort}}
rewards:
  - {{name: "reward.py:starts_low", timeout_s: 3}}
rollout: {{group_size: 4, max_new_tokens: 6}}
train:
  max_steps: {steps}
  per_device_train_batch_size: {batch}
  num_iterations: 2
  learning_rate: 1.0e-3
  gradient_checkpointing: false
  use_cpu: true
output: {{name: drill, save_steps: 1, report_to: []}}
"""
REWARD = '''
import ctypes, os, sys, time
from pathlib import Path

FAULT = Path(__file__).with_name("fault")

def starts_low(completions, *, answer, **_):
    """The first digit is below 5. While a file `fault` lies beside this one, what it says happens instead."""
    fault = FAULT.read_text() if FAULT.exists() else ""
    if fault == "hang":
        time.sleep(600)
    if fault == "exit":
        os._exit(3)
    if fault == "segfault":
        ctypes.string_at(0)
    if fault == "flood":
        for _ in range(300):
            os.write(1, b"x" * 2**20)
            os.write(2, b"y" * 2**20)
    time.sleep(0.05)
    if fault == "huge":
        return [1e39] * len(completions)
    return [float(c[:1].isdigit() and int(c[:1]) < 5) + (c == a) for c, a in zip(completions, answer)]
'''


@dataclass
class Outcome:
    """seconds  from the fault to the end of the process
    equal    whether the run, continued, ended with the weights of the uninterrupted one; None: not asked
    """

    seconds: float
    code: int
    last_line: str
    equal: bool | None = None
    note: str = ""


class Drill:
    """A folder with a recipe and its reward, and the processes started in it."""

    def __init__(self, folder: Path, *, ranks: int = 1, steps: int = STEPS) -> None:
        self.folder, self.ranks = folder, ranks
        folder.mkdir(parents=True)
        (folder / "reward.py").write_text(REWARD)
        (folder / "drill.yaml").write_text(RECIPE.format(steps=steps, batch=8 if ranks == 1 else 6))
        self.run = folder / "runs" / "drill"
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, *words: str, stdout: int | None = None) -> subprocess.Popen[bytes]:
        launcher = []
        if self.ranks > 1:
            torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
            launcher = ["launch", *torchrun, str(self.ranks), "-m", "posttrain"]
        command = [sys.executable, "-m", "posttrain", *launcher, "train", "drill.yaml", *words]
        with open(self.folder / "said", "wb") as said:  # both outputs in one, as in a terminal
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                stdout=said if stdout is None else stdout,
                stderr=said,
                env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            )
        self._started.append(process)
        return process

    def wait_for(
        self, there: Callable[[], bool], process: subprocess.Popen[bytes], pause_s: float = 0.01
    ) -> None:
        until = time.monotonic() + LIMIT_S
        while not there():
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(
                    f"{self.folder.name}: the run ended or hung before its fault: {self.last_line()}"
                )
            time.sleep(pause_s)

    def reach(self, step: int, process: subprocess.Popen[bytes]) -> None:
        metrics = self.run / "metrics.jsonl"
        self.wait_for(lambda: metrics.exists() and f'"step": {step},' in metrics.read_text(), process)

    def end(self, process: subprocess.Popen[bytes], since: float) -> Outcome:
        code = process.wait(LIMIT_S)
        return Outcome(time.monotonic() - since, code, self.last_line())

    def last_line(self) -> str:
        return last_line(self.folder / "said")

    def equals(self, whole: Path, *words: str) -> bool:
        """Continues the run, or starts it again where it had saved nothing, and compares the weights it ends with."""
        saved = any((self.run / "checkpoints").glob("checkpoint-*[0-9]"))
        again = ["--resume"] if saved else ["--set", "output.overwrite=true"]
        process = self.start(*again, *words)
        if process.wait(LIMIT_S) != 0:
            raise RuntimeError(f"{self.folder.name}: does not go on: {self.last_line()}")
        return digest(self.run) == digest(whole)

    def close(self) -> None:
        """Ends what this drill started and is still there."""
        for process in self._started:
            if process.poll() is None:
                for child in list(below(process.pid)):
                    kill(child)
                process.kill()
                process.wait()


def below(pid: int) -> Iterator[int]:
    """All processes below one, by their parents."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    queue = [pid]
    while queue:
        for child in parents.get(queue.pop(), []):
            yield child
            queue.append(child)


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def last_line(said: Path) -> str:
    """What a person sees last, but for warnings that torch prints when it is unloaded."""
    lines = [line.strip() for line in said.read_text(errors="replace").splitlines()]
    lines = [line for line in lines if line and "reducer.cpp" not in line and "WARNING" not in line]
    return lines[-1] if lines else ""


def words_of(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return []


def digest(run: Path) -> str:
    return hashlib.sha256((run / "model" / "model.safetensors").read_bytes()).hexdigest()
