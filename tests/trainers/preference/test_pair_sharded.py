"""FSDP2 moves nothing: two ranks that shard policy and reference train as two that each hold them whole.

The launch file is the one a user starts with; it reads weights on the main rank only, so a reference that is not given
to the others would be zeros there.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from places import SUPPORT
from torch.testing import assert_close

SCRIPT = SUPPORT / "pair_sharded_run.py"


def run(kind: str, root: Path, folder: Path) -> dict:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    if kind == "ddp":
        env["ACCELERATE_USE_CPU"] = "true"
        launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    else:  # its bfloat16 is left out, to compare in float32
        env["ACCELERATE_TORCH_DEVICE"] = "cpu"
        config = root / "launch" / "accelerate" / f"{kind}.yaml"
        launcher = ["accelerate.commands.launch", "--config_file", str(config)]
        launcher += ["--num_processes", "2", "--mixed_precision", "no"]
    out = folder / f"{kind}.pt"
    command = [sys.executable, "-m", *launcher, str(SCRIPT), kind, str(out)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(out, weights_only=True)


@pytest.mark.distributed
def test_sharding_moves_nothing(root: Path, tmp_path: Path) -> None:
    whole, sharded = run("ddp", root, tmp_path), run("fsdp2", root, tmp_path)
    assert set(sharded["DRIFT"]["engines"]) == {"FSDPLlamaForCausalLM"}
    assert sharded["RPO"]["losses"] == pytest.approx(whole["RPO"]["losses"], abs=1e-5)
    for name, tensor in whole["RPO"]["weights"].items():
        assert_close(sharded["RPO"]["weights"][name], tensor, rtol=0, atol=1e-5, msg=name)
    for name, tensor in whole["SALSA"]["weights"].items():
        assert_close(sharded["SALSA"]["weights"][name], tensor, rtol=0, atol=1e-5, msg=name)
    for mine, its in zip(sharded["SALSA"]["logs"], whole["SALSA"]["logs"], strict=True):
        assert mine == pytest.approx(its, abs=1e-5)
    # Two steps an iteration: the first finds policy and reference equal, on both ranks.
    assert [margin == 0.0 for margin in sharded["DRIFT"]["margins"]] == [True, False, True, False]
    assert sharded["DRIFT"]["pairs"] == whole["DRIFT"]["pairs"]
    assert sharded["imitated"] == whole["imitated"]
    assert [[text != "" for text in texts] for texts in whole["imitated"]] == [[True], [True] * 3]
    assert sharded["stopped"] == whole["stopped"] == {"policies": 2, "steps": 2}
    for method in ("DRIFT", "SePPO"):
        mine, its = sharded[method]["policies"], whole[method]["policies"]
        for number, (found, expected) in enumerate(zip(mine, its, strict=True)):
            moved = max((expected[name] - tensor).abs().max().item() for name, tensor in its[0].items())
            assert moved > 1e-2 * min(number, 1) - 1e-9
            for name, tensor in expected.items():
                assert_close(found[name], tensor, rtol=0, atol=1e-5, msg=f"{method}, policy {number}: {name}")
