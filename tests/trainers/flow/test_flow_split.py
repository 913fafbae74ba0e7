"""Neither ranks nor micro-batches move an image method: noise follows from an image's number."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from flow_split_run import runs
from places import SUPPORT
from torch.testing import assert_close

SCRIPT = SUPPORT / "flow_split_run.py"
METRICS = {
    "reward",
    "reward_std",
    "policy_loss",
    "kl",
    "signal/carried",
    "signal/tokens",
    "clip_ratio/region_mean",
}


def two_ranks(batch: int, accumulation: int, folder: Path) -> dict[str, Any]:
    out = folder / "found.pt"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [*launcher, str(SCRIPT), str(batch), str(accumulation), str(out)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(out, weights_only=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return runs(16, 1, tmp_path_factory.mktemp("whole"))


def assert_same(found: dict[str, Any], whole: dict[str, Any]) -> None:
    for name, its in whole.items():
        mine = found[name]
        for a, b in zip(mine["weights"], its["weights"], strict=True):
            assert_close(a, b, rtol=1e-5, atol=2e-6)
        for a, b in zip(json.loads(mine["logs"]), json.loads(its["logs"]), strict=True):
            assert b["grad_norm"] > 0
            assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4), name
            assert a["loss"] == pytest.approx(b["loss"], abs=1e-5), name
            for metric in METRICS & b.keys():
                assert a[metric] == pytest.approx(b[metric], rel=1e-4, abs=1e-5), f"{name}: {metric}"
        assert json.loads(mine["measured"]) == pytest.approx(json.loads(its["measured"]), rel=1e-3, abs=1e-4)


def test_micro_batches_move_nothing(whole, tmp_path):
    assert_same(runs(4, 4, tmp_path), whole)


@pytest.mark.distributed
def test_ranks_move_nothing(whole, tmp_path):
    assert_same(two_ranks(4, 2, tmp_path), whole)
