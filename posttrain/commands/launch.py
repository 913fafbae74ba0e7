"""`posttrain launch LAUNCHER ...`: a launcher of several processes whose exit code and last line are the run's.

`posttrain launch RECIPE --slurm` is another thing under the same name: launch_job.py.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from posttrain.commands import launch_job
from posttrain.process import exit_codes, launched
from posttrain.process.stop_requests import SIGNALS

PATIENCE = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
"""Seconds that torchrun and accelerate launch, sent a SIGTERM themselves, give their processes before they kill them:
30 unless told, less than a step and a checkpoint may take. Whoever is in a hurry sends SIGKILL."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "launcher",
        nargs=argparse.REMAINDER,
        help="a launcher's command: torchrun --nproc_per_node 2 -m posttrain train RECIPE; or RECIPE --slurm, "
        "--skypilot or --torchrun, for a file that starts all of a job (more: posttrain launch RECIPE --help)",
    )


def main(args: argparse.Namespace) -> int:
    """Start a run with a launcher and end as the run ends, with its exit code and its last line; or, given a recipe,
    write and start one file for all machines of a job.

    Signals go to the run's processes, not to the launcher, so that a step may take as long as it takes to be saved.
    """
    if not args.launcher:
        print(
            "posttrain launch: give the launcher's command, e.g. torchrun --nproc_per_node 2 ...",
            file=sys.stderr,
        )
        return exit_codes.REFUSED
    if launch_job.is_recipe(args.launcher):
        return launch_job.main(args.launcher)
    with tempfile.TemporaryDirectory(prefix="posttrain-launch-") as name:
        return _run(args.launcher, Path(name))


def _run(command: list[str], folder: Path) -> int:
    asked: list[int] = []

    def pass_on(number: int, _frame: Any) -> None:
        asked.append(number)
        processes = list(launched.processes(folder))
        for pid in processes:
            _signal(pid, number)
        if not processes:  # nothing of the run has begun, or nothing is left of it
            _signal(child.pid, signal.SIGTERM, group=True)

    for number in SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, pass_on)
    try:
        # a session of its own: a Ctrl-C in the terminal is passed on to the run instead
        child = subprocess.Popen(
            command,
            env={PATIENCE: "86400", **os.environ, launched.VARIABLE: str(folder)},
            start_new_session=True,
            preexec_fn=_outlives_warnings,
        )
    except OSError as error:
        print(f"posttrain launch: {command[0]}: {error.strerror}", file=sys.stderr)
        return exit_codes.REFUSED
    code = child.wait()
    said = launched.ended(folder)
    if said is not None:
        if said.line:
            print(said.line, file=sys.stderr, flush=True)
        return said.code
    if asked:
        print("stopped before the run had begun", file=sys.stderr, flush=True)
        return exit_codes.STOPPED
    return code if code >= 0 else 128 - code


def _outlives_warnings() -> None:
    """Slurm signals every process of a job. A launcher that dies of it would leave the run's processes without one;
    they handle it themselves (process/stop_requests.py)."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def _signal(pid: int, number: int, *, group: bool = False) -> None:
    try:
        os.killpg(pid, number) if group else os.kill(pid, number)
    except ProcessLookupError:
        return  # it has just ended
