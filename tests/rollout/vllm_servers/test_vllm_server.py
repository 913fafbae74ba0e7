"""A real vLLM server, started as a user starts it: agreement, keys, training ahead, a death and a resume."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from engine_checks import agreement, losses_of, losses_with, trainer_on, write_model
from rollout_fakes import nudge

from posttrain.objectives.opd import OPD
from posttrain.rollout.base import EngineLost, EngineRefused, WeightsDiffer
from posttrain.rollout.vllm.server import VLLMServer, servers_of
from posttrain.rollout.vllm.transfer import make_transfer
from posttrain.trainers.engines.rollout_plan import RolloutPlan
from posttrain.trainers.forward.base import Rows
from posttrain.trainers.forward.plain import PlainScorer
from posttrain.trainers.models.load import character_tokenizer
from posttrain.trainers.policy.served_teacher import ServedTeacher

pytestmark = pytest.mark.vllm

KEY = "test-key"


class ServerProcess:
    """launch/serve_vllm.sh on a free port; `stop` ends it and all it started."""

    def __init__(self, root: Path, model: Path, log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._command = [str(root / "launch" / "serve_vllm.sh"), str(model), "--max-model-len", "64"]
        self._command += ["--max-num-seqs", "16"]
        self._log = log
        self._process: subprocess.Popen | None = None

    def start(self) -> None:
        env = {**os.environ, "PYTHON": sys.executable, "PORT": str(self.port), "VLLM_API_KEY": KEY}
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                self._command, env=env, stdout=log, stderr=log, start_new_session=True
            )
        (server,) = servers_of([self.url])
        server.wait_until_up(300.0)

    def stop(self, how: int = signal.SIGTERM) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            # vLLM waits for ever now and then when its engine has gone first; its end is not what is tested.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(20)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # it, and the engine's own processes
            self._process.wait(20)
        self._process = None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def model(folder: Path):
    return write_model(folder / "model", tied=True)  # the harder case, see vllm_reload.py


@pytest.fixture(scope="module")
def process(root: Path, folder: Path, model) -> Iterator[ServerProcess]:
    server = ServerProcess(root, folder / "model", folder / "server.log")
    try:
        server.start()
        yield server
    finally:
        server.stop()


def engine_of(process: ServerProcess, folder: Path, sync: str = "gloo", key: str = KEY) -> VLLMServer:
    servers = servers_of([process.url], api_key=key, timeout_s=60.0, retries=2, retry_delay_s=0.2)
    transfer = make_transfer(sync, servers, 60.0, folder=str(folder / "sync"))  # type: ignore[arg-type]  # a Literal
    return VLLMServer(servers, transfer, dtype="float32", max_length=64, start_timeout_s=5.0)


def test_before_any_sync_it_agrees_by_the_checkpoint_it_loaded(
    process: ServerProcess, folder: Path, model
) -> None:
    """The first test here: the others send weights."""
    found = agreement(engine_of(process, folder), model)
    assert found["greedy"]
    assert found["gap"] < 1e-4


def test_as_a_teacher_it_says_what_transformers_says(
    process: ServerProcess, model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second test here, for the same reason."""
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    teacher = ServedTeacher(OPD(teacher_server=process.url, teacher_batch_size=2), character_tokenizer())
    rows = Rows.of_lists([[5, 6, 7], [8], [9, 9]], [[9, 10], [11, 12, 13], [20]], filler=0, device="cpu")
    with torch.no_grad():
        expected = PlainScorer().score(model, rows).logprobs * rows.completion_mask
    torch.testing.assert_close(teacher.logprobs(rows), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(EngineRefused, match="another tokenizer than the policy"):
        ServedTeacher(OPD(teacher_server=process.url), character_tokenizer("9876543210>abc"))


@pytest.mark.parametrize("sync", ["gloo", "disk"])
def test_it_agrees_with_transformers_before_and_after_every_sync(
    sync: str, process: ServerProcess, folder: Path, model
) -> None:
    engine = engine_of(process, folder, sync)
    for version in (0, 1, 2):
        if version:
            nudge(model, version)
            assert agreement(engine, model)["gap"] > 1e-2  # the check can fail: without the sync it does
        engine.update_weights(model.named_parameters(), version)
        found = agreement(engine, model)
        assert found["greedy"]
        assert found["gap"] < 1e-4
    engine.close()


def test_a_wrong_key_is_refused_on_every_route(process: ServerProcess, folder: Path) -> None:
    with pytest.raises(EngineRefused, match=f"{process.url}: wrong API key"):
        engine_of(process, folder, key="other").connect()
    for route in ("/v1/models", "/server_info", "/weight_info"):
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(process.url + route, timeout=10)
    rpc = urllib.request.Request(process.url + "/collective_rpc", data=b'{"method": "posttrain_weights"}')
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(rpc, timeout=10)


def test_a_prompt_that_does_not_fit_is_refused_with_the_servers_reason(
    process: ServerProcess, folder: Path
) -> None:
    from posttrain.rollout.base import Sampling

    with pytest.raises(EngineRefused, match=r"refuses /v1/completions .*64"):
        engine_of(process, folder).generate([[5] * 70], Sampling(max_new_tokens=4))


def test_training_with_it_is_training_with_transformers_on_the_same_tokens(
    process: ServerProcess, folder: Path
) -> None:
    found = losses_with(engine_of(process, folder), folder / "run", folder / "model")
    assert found["engine"] == pytest.approx(found["transformers"], abs=1e-4)
    assert max(map(abs, found["engine"])) > 1e-2


def test_a_skipped_sync_is_caught_by_name(process: ServerProcess, folder: Path) -> None:
    trainer = trainer_on(folder / "model", folder / "skipped", learning_rate=3e-2)
    engine = engine_of(process, folder)
    send = engine.update_weights

    def skip_the_second(named_tensors, version):
        if version != 1:
            send(named_tensors, version)

    engine.update_weights = skip_the_second  # type: ignore[method-assign]  # the fault that is looked for
    engine._check_versions = lambda servers: None  # type: ignore[method-assign]  # the check that would be first
    trainer.use_engine(engine)
    with pytest.raises(
        WeightsDiffer, match="weight version 1 .*First tensor that differs: model.embed_tokens.weight"
    ):
        trainer.train()


def test_a_server_killed_in_mid_run_then_restarted_and_resumed(process: ServerProcess, folder: Path) -> None:
    """The last test here: it ends the server."""
    plan = RolloutPlan(staleness=1)
    trainer = trainer_on(folder / "model", folder / "killed", max_steps=8)
    engine = engine_of(process, folder)
    trainer.use_engine(engine, plan)
    ask = engine.generate

    def dies_at_version_three(prompts, sampling):
        if engine.version == 3:
            threading.Thread(target=process.stop, args=(signal.SIGKILL,)).start()
        return ask(prompts, sampling)

    engine.generate = dies_at_version_three  # type: ignore[method-assign]  # the fault that is looked for
    with pytest.raises(EngineLost) as caught:
        trainer.train()
    assert process.url in str(caught.value)
    assert "--resume" in str(caught.value)
    (saved,) = (folder / "killed").glob("checkpoint-*")
    assert int(saved.name.rpartition("-")[2]) in (3, 4)
    process.start()
    resumed = trainer_on(folder / "model", folder / "killed", max_steps=8)
    resumed.use_engine(engine_of(process, folder), plan)
    resumed.train(resume_from_checkpoint=str(saved))
    assert resumed.state.global_step == 8
    assert len(losses_of(resumed)) == 8
    lags = [
        float(one["rollout/staleness_max"])
        for one in resumed.state.log_history
        if "rollout/staleness_max" in one
    ]
    assert lags[-3:] == [1.0, 1.0, 1.0]
