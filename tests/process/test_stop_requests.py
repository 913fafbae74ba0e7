"""Who may ask a run to stop, and what it does: each signal, a closed pipe, a second request; and a launcher's code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from posttrain.cli import main
from posttrain.process.stop_requests import REQUESTS
from posttrain.process.stop_requests import SIGNALS as HEARD

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
SIGNALS = ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"]

STEPS = """
import signal, sys, time
from posttrain.process.stop_requests import REQUESTS, guard_outputs
{before}
asked = []
REQUESTS.listen()
guard_outputs()
REQUESTS.tell = asked.append
REQUESTS.last_words = lambda: "stopped at once; continue"
for step in range(400):
    print("step", step)
    if asked:
        print("saved:", asked[0], file=sys.stderr)
        sys.exit(130)
    time.sleep(0.05)
"""


def start(code: str, **pipes: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        **pipes,  # type: ignore[arg-type]  # only options that are numbers
    )


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


@pytest.mark.parametrize("name", SIGNALS)
def test_each_signal_is_a_request(name: str) -> None:
    process = start(STEPS.format(before=""))
    line_of(process)
    process.send_signal(signal.Signals[name])
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert err == f"saved: {'Ctrl-C' if name == 'SIGINT' else name}\n"


def test_a_closed_pipe_is_a_request() -> None:
    process = start(STEPS.format(before=""))
    line_of(process)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == "saved: its output was closed\n"
    assert process.wait(20) == 130


def test_a_run_that_is_to_outlive_its_terminal_does() -> None:
    process = start(STEPS.format(before="signal.signal(signal.SIGHUP, signal.SIG_IGN)"))
    line_of(process)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=20)[1] == "saved: SIGTERM\n"


@pytest.mark.parametrize("second", SIGNALS)
def test_a_second_request_ends_at_once_in_one_line(second: str) -> None:
    hangs = STEPS.format(before="").replace("sys.exit(130)", "print('hangs', flush=True); time.sleep(60)")
    process = start(hangs)
    line_of(process)
    process.send_signal(signal.SIGTERM)
    while line_of(process) != "hangs\n":
        pass
    if second != "SIGINT":
        time.sleep(1.1)
    process.send_signal(signal.Signals[second])
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    last = f"stopped at once; continue ({'Ctrl-C' if second == 'SIGINT' else second})"
    assert err.strip().splitlines() == ["saved: SIGTERM", "", last]


def test_what_arrives_by_two_ways_is_one_request() -> None:
    """Slurm signals every process of a step, and the step's shell and launcher pass on what they were sent."""
    process = start(STEPS.format(before="").replace("sys.exit(130)", "time.sleep(0.4); sys.exit(130)"))
    line_of(process)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGUSR1)
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=20)[1] in ("saved: SIGTERM\n", "saved: SIGUSR1\n")
    assert process.returncode == 130


def test_before_the_first_step_nothing_is_finished() -> None:
    process = start(STEPS.format(before="").replace("REQUESTS.tell = asked.append", ""))
    line_of(process)
    process.send_signal(signal.SIGUSR1)
    _, err = process.communicate(timeout=20)
    assert "posttrain.process.stop_requests.Stopped: SIGUSR1" in err  # commands/train.py says it in one line


def test_a_forked_helper_ends_by_the_signal_alone() -> None:
    """Pools end their workers with SIGTERM: no request of the run's, and no traceback."""
    code = """
import os, signal, time
from posttrain.process.stop_requests import REQUESTS
REQUESTS.listen()
pid = os.fork()
if pid == 0:
    time.sleep(60)
time.sleep(0.2)
os.kill(pid, signal.SIGTERM)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), REQUESTS.reason)
"""
    out, err = start(code).communicate(timeout=20)
    assert (out, err) == ("-15 None\n", "")


# A launcher, which itself ends with 1 and a traceback

LAUNCHER = """
import os, signal, subprocess, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit("a traceback of the launcher's own"))
ranks = [subprocess.Popen([sys.executable, "-c", sys.argv[1]], env={**os.environ, "RANK": str(r)}) for r in (0, 1)]
codes = [rank.wait() for rank in ranks]
sys.exit("a traceback of the launcher's own" if any(codes) else 0)
"""
RANK = r"""
import os, signal, sys, time
from posttrain.process import launched
signal.signal(signal.SIGUSR1, lambda *_: asked.append(1))
asked = []
launched.begin()
os.write(1, b"begun\n")  # one write: two processes share the pipe
{body}
"""


def launch(body: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "posttrain",
        "launch",
        sys.executable,
        "-c",
        LAUNCHER,
        RANK.format(body=body),
    ]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )


def test_the_code_and_the_last_line_are_the_runs() -> None:
    process = launch('launched.end(4 + int(os.environ["RANK"]), "r.yaml: reward failed"); sys.exit(4)')
    _, err = process.communicate(timeout=30)
    assert process.returncode == 4
    assert err.splitlines() == ["a traceback of the launcher's own", "r.yaml: reward failed"]


def test_signals_go_to_the_processes_of_the_run() -> None:
    process = launch("while not asked: time.sleep(0.02)\nlaunched.end(130, 'stopped'); sys.exit(130)")
    assert line_of(process) == line_of(process) == "begun\n"
    process.send_signal(signal.SIGUSR1)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "stopped"


def test_a_launcher_outlives_a_warning_that_everybody_is_sent() -> None:
    """As Slurm sends it: to `posttrain launch`, to the launcher and to the run's processes."""
    process = launch(
        "while not asked: time.sleep(0.02)\ntime.sleep(0.5); launched.end(130, 'saved'); sys.exit(130)"
    )
    assert line_of(process) == line_of(process) == "begun\n"
    launchers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(launchers) == 1
    ranks = Path(f"/proc/{launchers[0]}/task/{launchers[0]}/children").read_text().split()
    assert len(ranks) == 2
    for pid in (*launchers, *ranks, str(process.pid)):
        os.kill(int(pid), signal.SIGUSR1)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "saved"


def test_a_run_that_says_nothing_ends_as_its_launcher() -> None:
    process = launch("os.kill(os.getpid(), 9)")
    process.communicate(timeout=30)
    assert process.returncode == 1
    done = launch("launched.end(0, '')")
    done.communicate(timeout=30)
    assert done.returncode == 0


def test_a_command_called_from_python_gives_the_signals_back(tmp_path, capsys) -> None:
    """A notebook goes on after a refused recipe, and its Ctrl-C is its own again."""
    before = {number: signal.getsignal(number) for number in HEARD}
    assert main(["train", str(tmp_path / "none.yaml")]) == 2
    assert {number: signal.getsignal(number) for number in HEARD} == before
    assert REQUESTS.ended is None
    assert REQUESTS.reason is None
