"""One run at a time on a server: the second is told before it touches it, the first goes on; the dead do not block."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from rollout_fakes import PretendVLLM, behind, http_server, small_model

from posttrain.rollout.base import EngineLost, EngineRefused
from posttrain.rollout.vllm.client import Server
from posttrain.rollout.vllm.lease import Lease, has_ended, is_this_process, myself
from posttrain.rollout.vllm.server import VLLMServer
from posttrain.rollout.vllm.server_lease import LEASE, LEASE_S, OneRun
from posttrain.rollout.vllm.transfer import DiskTransfer


def server(url: str, run: str, **options) -> Server:
    return Server(
        url, api_key="key", timeout_s=5.0, retries=0, run=run, sleep=lambda _: time.sleep(0.02), **options
    )


@pytest.fixture
def another_process(monkeypatch: pytest.MonkeyPatch):
    """As if the holder were a process of another machine."""
    monkeypatch.setattr(
        "posttrain.rollout.vllm.lease.myself", lambda: {"host": "far", "pid": 7, "machine": "elsewhere"}
    )


def test_the_second_trainer_is_refused_before_it_touches_the_server_and_the_first_goes_on(
    tmp_path: Path, another_process: None, capsys: pytest.CaptureFixture
) -> None:
    pretend = PretendVLLM(small_model())
    asked: list[tuple[str, str]] = []

    def answer(method, path, body, headers):
        asked.append((headers.get("X-Posttrain-Run"), path))
        return pretend.answer(method, path, body, headers)

    with http_server(behind(OneRun, answer)) as url:
        first, second = (
            VLLMServer(
                [server(url, "")],
                DiskTransfer([server(url, "")], 5.0, tmp_path / run),
                dtype="float32",
                run_id=run,
            )
            for run in ("first", "second")
        )
        first._lease._every_s = 0.1
        first.update_weights(small_model(seed=1).named_parameters(), 1)
        with pytest.raises(
            EngineRefused, match=r"in use by run first \(process 7 on far\); nothing was sent to it"
        ):
            second.update_weights(small_model(seed=2).named_parameters(), 1)
        assert {path for run, path in asked if run == "second"} == {"/health"}
        assert pretend.version == "first:1"
        first.update_weights(small_model(seed=3).named_parameters(), 2)
        assert pretend.version == "first:2"
        first.close()
        second.update_weights(small_model(seed=2).named_parameters(), 1)  # it is free now
        assert pretend.version == "second:1"
        second.close()
    assert capsys.readouterr().err.count("looking whether that run still lives") == 1


def test_whoever_holds_no_lease_changes_nothing_and_may_ask_for_completions() -> None:
    pretend = PretendVLLM(small_model())
    with http_server(behind(OneRun, pretend.answer)) as url:
        stranger = server(url, "stranger")
        stranger.post("/update_weight_version", {"new_version": "x"})  # nobody holds it: as before
        assert server(url, "holder").exchange("POST", LEASE, myself(), 5.0)[0] == 200
        for run in ("stranger", None):
            with pytest.raises(EngineRefused, match="HTTP 409.*in use by run holder"):
                server(url, run).post("/update_weight_version", {"new_version": "y"})
        assert stranger.get("/weight_info") == {"weight_version": "x"}
        body = {"prompt": [5], "temperature": 1.0, "max_tokens": 1, "stop_token_ids": [], "n": 1}
        assert len(stranger.post("/v1/completions", body)["choices"]) == 1
        server(url, "holder").post("/update_weight_version", {"new_version": "z"})
        assert pretend.version == "z"


def test_a_lease_runs_out_and_is_renewed_by_any_request_of_its_holder() -> None:
    clock = [0.0]
    pretend = PretendVLLM(small_model())
    with http_server(behind(lambda app: OneRun(app, lambda: clock[0]), pretend.answer)) as url:
        first, second = server(url, "first"), server(url, "second")
        assert first.exchange("POST", LEASE, {}, 5.0)[0] == 200
        clock[0] = LEASE_S - 1
        first.get("/weight_info")
        clock[0] = 2 * LEASE_S - 2
        assert second.exchange("POST", LEASE, {}, 5.0)[0] == 409
        assert second.exchange("DELETE", LEASE, {}, 5.0)[0] == 409
        clock[0] = 2 * LEASE_S - 1
        assert second.exchange("POST", LEASE, {}, 5.0)[0] == 200
        assert first.exchange("POST", LEASE, {"instead_of": "third"}, 5.0)[0] == 409
        assert first.exchange("POST", LEASE, {"instead_of": "second"}, 5.0)[0] == 200
        assert second.exchange("GET", LEASE, {}, 5.0)[0] == 400
        assert server(url, None).exchange("POST", LEASE, {}, 5.0)[0] == 400


HOLD = """
    import sys, time
    from posttrain.rollout.vllm.client import Server
    from posttrain.rollout.vllm.lease import Lease

    Lease([Server(sys.argv[1], run="killed", api_key="key")]).take()
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_trainer_that_was_killed_does_not_block_its_server(tmp_path: Path, root: Path) -> None:
    script = tmp_path / "hold.py"
    script.write_text(textwrap.dedent(HOLD))
    environment = {**os.environ, "PYTHONPATH": str(root)}
    with http_server(behind(OneRun, PretendVLLM(small_model()).answer)) as url:
        with subprocess.Popen(
            [sys.executable, script, url], stdout=subprocess.PIPE, text=True, env=environment
        ) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(EngineRefused):
                server(url, "resumed").post("/update_weight_version", {"new_version": "x"})
            os.kill(holder.pid, signal.SIGKILL)
            holder.wait()
        began = time.monotonic()
        lease = Lease([server(url, "resumed")])
        lease.take()
        lease.release()
    assert time.monotonic() - began < 5.0


def test_whose_lease_it_is() -> None:
    mine = myself()
    assert is_this_process(mine)
    assert not has_ended(mine)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert has_ended({**mine, "pid": ended.pid})
    assert not has_ended({**mine, "pid": ended.pid, "machine": "elsewhere"})  # which cannot be seen from here
    assert not is_this_process({**mine, "machine": "elsewhere"})


def test_a_server_without_leases_is_used_as_before_and_that_is_said(capsys: pytest.CaptureFixture) -> None:
    with http_server(PretendVLLM(small_model()).answer) as url:
        Lease([server(url, "run")]).take()
    assert "does not say whether another run uses it" in capsys.readouterr().err
    Lease([server(url, "run")]).take()  # gone: the calls that follow say so
    with pytest.raises(EngineLost):
        server(url, "run").get("/weight_info")


def test_a_holder_that_is_silent_is_waited_out(
    another_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("posttrain.rollout.vllm.server_lease.LEASE_S", 0.4)
    with http_server(behind(OneRun, PretendVLLM(small_model()).answer)) as url:
        assert server(url, "dead").exchange("POST", LEASE, {"host": "far", "pid": 1}, 5.0)[0] == 200
        lease = Lease([server(url, "next")], every_s=30.0)
        lease.take()
        assert server(url, "dead").exchange("POST", LEASE, {}, 5.0)[0] == 409
        lease.release()


def test_a_run_that_lost_its_lease_does_not_take_it_back() -> None:
    with http_server(behind(OneRun, PretendVLLM(small_model()).answer)) as url:
        first = Lease([server(url, "first")], every_s=0.02)
        first.take()
        assert server(url, "second").exchange("POST", LEASE, {"instead_of": "first"}, 5.0)[0] == 200
        time.sleep(0.3)  # it has asked, and been told
        assert server(url, "second").exchange("DELETE", LEASE, {}, 5.0)[0] == 200
        time.sleep(0.3)
        assert server(url, "third").exchange("POST", LEASE, {}, 5.0)[0] == 200
        first.release()
