"""Several training processes share a server: each asks for its own rows, one sends the weights, all stop together."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from places import SUPPORT
from rollout_fakes import PretendVLLM, http_server, small_model

SCRIPT = SUPPORT / "two_rank_run.py"
pytestmark = pytest.mark.distributed


def run(processes: int, url: str, batch: int, out: Path) -> list[dict]:
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [*launcher, str(SCRIPT), url, str(batch), str(out)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(f"{out}.{rank}", weights_only=True) for rank in range(processes)]


def test_two_ranks_sample_and_train_as_one_does(tmp_path: Path) -> None:
    found = {}
    for processes, batch in ((1, 8), (2, 4)):
        pretended = PretendVLLM(small_model(scale=6.0))
        with http_server(pretended.answer) as url:
            found[processes] = run(processes, url, batch, tmp_path / f"found{processes}")
    (one,), (first, second) = found[1], found[2]
    assert "error" not in one
    for whole, a, b in zip(one["sampled"], first["sampled"], second["sampled"], strict=True):
        assert [c["token_ids"] for c in whole] == [c["token_ids"] for c in [*a, *b]]
        assert [c["segments"] for c in whole] == [c["segments"] for c in [*a, *b]]
    assert [c["segments"][0][0] for c in (part[0] for part in one["sampled"])] == [0, 0, 1, 2]
    for whole, a, b in zip(one["weights"], first["weights"], second["weights"], strict=True):
        torch.testing.assert_close(a, b, atol=0, rtol=0)
        torch.testing.assert_close(a, whole, atol=1e-5, rtol=0)


def test_an_error_that_one_rank_meets_stops_both(tmp_path: Path) -> None:
    pretended = PretendVLLM(small_model(scale=6.0))
    broken: list[list[int]] = []

    def answer(method, path, body, headers):
        # one prompt of the rollout that follows the first update: only the rank that has it is told
        if path == "/v1/completions" and pretended.version.endswith(":1") and body["n"] == 4:
            broken.append(body["prompt"])
            if body["prompt"] == broken[0]:
                return 200, b"broken"
        return pretended.answer(method, path, body, headers)

    with http_server(answer) as url:
        first, second = run(2, url, 4, tmp_path / "found")
    assert "not JSON: broken" in first["error"]
    assert "saved as of step" in first["error"]
    assert first["error"] == second["error"]
    assert list((tmp_path / "run").glob("checkpoint-*"))
