"""Two ranks whose responses call tools unequally often: neither waits for the other for ever."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from places import SUPPORT

pytestmark = pytest.mark.distributed


def test_ranks_take_their_turns_together(tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [*launcher, str(SUPPORT / "tool_rank_run.py"), "4", str(tmp_path / "found")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"found.{rank}", weights_only=True) for rank in (0, 1))
    assert len(first["turns"]) == len(second["turns"])  # idle ones, of a single prompt, included
    assert first["turns"] != second["turns"]
    assert first["ids"] == second["ids"]  # all ranks' responses, known to each
    assert first["written"] == second["written"]
    assert len(first["written"]) == 8
    assert first["logged"] == second["logged"] or not second["logged"]
    for a, b in zip(first["weights"], second["weights"], strict=True):
        assert torch.equal(a, b)
