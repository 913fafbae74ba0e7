"""A run that waited in vain says for whom: a process that is gone, a machine that is silent, or one that is stuck."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from posttrain.commands.train import peer_is_lost
from posttrain.process.roll import Member, Roll

OTHER = """
from posttrain.process.roll import Roll
roll = Roll()
print(roll.sign(1).port, flush=True)
import time; time.sleep(600)
"""


@pytest.fixture
def other() -> Iterator[tuple[subprocess.Popen[str], Member]]:
    """A second process that has signed."""
    process = subprocess.Popen([sys.executable, "-c", OTHER], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    yield process, Member(1, "host-b", "127.0.0.1", int(process.stdout.readline()))
    process.kill()
    process.wait()


@pytest.fixture
def roll() -> Iterator[Roll]:
    made = Roll()
    yield made
    made.leave()


def test_a_process_that_was_killed_is_named(roll: Roll, other: tuple[subprocess.Popen[str], Member]) -> None:
    process, member = other
    roll.meet([member, roll.sign(0)])
    assert [m.rank for m in roll.members] == [0, 1]
    assert roll.absent() == ([], [])
    process.kill()
    process.wait()
    assert roll.absent() == ([member], [])
    assert roll.in_words() == "another process of the run is gone: rank 1 on host-b (127.0.0.1)"


def test_a_process_that_is_stuck_is_there(roll: Roll, other: tuple[subprocess.Popen[str], Member]) -> None:
    process, member = other
    roll.meet([roll.sign(0), member])
    process.send_signal(signal.SIGSTOP)
    for _ in range(200):  # nobody takes these connections
        assert roll.absent() == ([], [])
    assert "one is stuck" in roll.in_words()
    assert "train.ddp_timeout" in roll.in_words()


def test_a_machine_that_cannot_be_reached_is_named(roll: Roll, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = roll.sign(0)
    roll.meet([mine, *(Member(rank, f"host-{rank}", f"10.77.0.{rank}", 9) for rank in range(1, 11))])

    def cut(address: tuple[str, int], timeout: float) -> socket.socket:
        raise TimeoutError("timed out")

    monkeypatch.setattr(socket, "create_connection", cut)
    assert [m.rank for m in roll.absent()[1]] == list(range(1, 11))
    said = roll.in_words()
    assert said.startswith("does not answer any more: rank 1 on host-1 (10.77.0.1), rank 2 on host-2")
    assert said.endswith("rank 8 on host-8 (10.77.0.8), and 2 more")


def test_one_process_knows_of_nobody_else() -> None:
    assert Roll().in_words() == "another process of the run is gone"


def test_without_a_way_to_the_first_machine_this_one_is_alone(
    roll: Roll, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASTER_ADDR", "no-such-host.invalid")
    assert roll.sign(0).address == "127.0.0.1"


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        ("[gloo/transport/tcp/pair.cc:525] Connection closed by peer [10.77.0.2]:2309", True),
        ("[gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 20000ms for recv operation", True),
        ("gloo connectFullMesh failed with [transport/tcp/pair.cc:144] no error", False),
        ("a tool timed out", False),
    ],
)
def test_what_gloo_says_of_a_lost_process_is_known(text: str, lost: bool) -> None:
    assert peer_is_lost(RuntimeError(text)) is lost
