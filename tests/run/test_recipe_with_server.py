"""A recipe with a server, run as a user runs it: the server is late, is lost, comes back, and the run goes on."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from engine_checks import write_model
from places import SUPPORT
from rollout_fakes import PretendVLLM, http_server

RECIPE: dict[str, Any] = {
    "method": "bapo",
    "model": {"path": "start", "dtype": "float32"},
    "data": {"name": "sort", "args": {"size": 64, "held_out": 16}},
    "rewards": [{"name": f"{SUPPORT / 'rollout_reward.py'}:judged"}],
    "rollout": {
        "engine": "vllm_server",
        "staleness": 1,
        "group_size": 4,
        "max_new_tokens": 6,
        "vllm": {"timeout_s": 20, "retries": 1, "retry_delay_s": 0.05, "start_timeout_s": 60},
    },
    "train": {
        "max_steps": 6,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-3,
        "gradient_checkpointing": False,
        "use_cpu": True,
    },
    "output": {"name": "own", "save_steps": 100, "report_to": []},
}


def start(folder: Path, url: str, *more: str) -> subprocess.Popen:
    (folder / "own.yaml").write_text(yaml.safe_dump(RECIPE))
    command = [sys.executable, "-m", "posttrain", "train", "own.yaml", *more]
    command += ["--set", f'rollout.vllm.servers=["{url}"]']
    env = {**os.environ, "VLLM_API_KEY": "key", "OMP_NUM_THREADS": "1"}
    log = (folder / "said.txt").open("w")
    return subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log)


def said(folder: Path) -> str:
    return (folder / "said.txt").read_text()


def test_a_lost_server_is_named_and_the_run_resumes_when_it_is_back(tmp_path: Path) -> None:
    pretended = PretendVLLM(write_model(tmp_path / "start"))
    dead, mortal = False, True

    def answer(method, path, body, headers):
        nonlocal dead
        if mortal and path == "/v1/completions" and pretended.version.endswith(":3"):
            dead = True
        return (500, b"EngineCore died") if dead else pretended.answer(method, path, body, headers)

    with http_server(answer) as url:
        assert start(tmp_path, url).wait(200) == 3, said(tmp_path)
        text = said(tmp_path)
        assert f"own.yaml: rollout server {url}: no usable answer to " in text
        assert "EngineCore died" in text
        assert "launch/serve_vllm.sh" in text
        assert "--resume continues it from there" in text
        assert "Traceback" not in text
        (saved,) = (tmp_path / "runs" / "own" / "checkpoints").glob("checkpoint-*")
        step = int(saved.name.rpartition("-")[2])
        assert 3 <= step < 6
        dead, mortal, pretended.version = False, False, "default"  # restarted, it knows of no run
        assert start(tmp_path, url, "--resume").wait(200) == 0, said(tmp_path)
    lines = (tmp_path / "runs" / "own" / "metrics.jsonl").read_text().splitlines()
    steps = [row for row in map(json.loads, lines) if "loss" in row]
    assert [row["step"] for row in steps] == [1, 2, 3, 4, 5, 6]
    assert [row["rollout/staleness"] for row in steps[-2:]] == [1, 1]
    assert max(row["rollout/proof_gap"] for row in steps if "rollout/proof_gap" in row) < 1e-4
    assert (tmp_path / "runs" / "own" / "model" / "model.safetensors").is_file()


def test_a_wait_for_a_server_is_announced_and_ends_with_a_line_on_ctrl_c(tmp_path: Path) -> None:
    write_model(tmp_path / "start")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    process = start(tmp_path, url)  # nobody is there any more
    end = time.monotonic() + 150
    while f"waiting up to 60 s for rollout server {url}" not in said(tmp_path):
        assert process.poll() is None, said(tmp_path)
        assert time.monotonic() < end, said(tmp_path)
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert "own.yaml: stopped" in said(tmp_path)
    assert "nothing was saved yet; start again with: posttrain train own.yaml" in said(tmp_path)
    assert "Traceback" not in said(tmp_path)
