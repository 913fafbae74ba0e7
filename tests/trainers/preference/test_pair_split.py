"""Neither the number of ranks nor the split into micro-batches moves a pair method; a loop shares its sampling out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from places import SUPPORT
from torch.testing import assert_close

SCRIPT = SUPPORT / "pair_split_run.py"


def run(processes: int, batch: int, accumulation: int, folder: Path) -> dict:
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [*launcher, str(SCRIPT), str(batch), str(accumulation), str(folder)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(folder / "found.pt", weights_only=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run(1, 8, 1, tmp_path_factory.mktemp("whole"))


@pytest.mark.distributed
@pytest.mark.parametrize("split", [(2, 2, 2)], ids=["two_ranks_of_two_micro_batches"])
def test_ranks_and_micro_batches_move_nothing(split, whole, tmp_path):
    found = run(*split, tmp_path)
    for method in ("RPO", "IPO", "SePPO", "KTO"):
        for mine, its in zip(found[method]["weights"], whole[method]["weights"], strict=True):
            # Adam divides by the gradient's size: float noise of a gradient near 0 becomes a share of the step, 1e-3.
            assert_close(mine, its, rtol=0, atol=3e-5)
        assert found[method]["loss"] == pytest.approx(whole[method]["loss"], abs=1e-5)
    assert found["KTO"]["points"] == pytest.approx(whole["KTO"]["points"], abs=1e-4)
    assert max(whole["KTO"]["points"]) > 0
    assert found["DRIFT"]["steps"] == whole["DRIFT"]["steps"] == 2
    assert found["DRIFT"]["policies"] == 3
    # The first iteration samples from equal weights: the same answers, whichever rank drew them.
    assert found["DRIFT"]["samples"][0] == whole["DRIFT"]["samples"][0]
    assert len(found["DRIFT"]["samples"][1]) == 8
