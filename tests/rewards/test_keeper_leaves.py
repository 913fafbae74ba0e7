"""The process that stands between a trainer and a reward's worker: how it leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_a_keeper_leaves_as_its_worker_did_and_says_nothing(number: signal.Signals, root: Path) -> None:
    script = (
        "import os, signal, sys, time\n"
        "from posttrain.rewards.descendants import keep\n"
        "worker = os.fork()\n"
        "if worker == 0:\n"
        "    os.kill(os.getpid(), int(sys.argv[1]))\n"
        "    time.sleep(60)\n"
        "keep(worker)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(int(number))],
        capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (-number, "")
