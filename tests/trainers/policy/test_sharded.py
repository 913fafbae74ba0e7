"""FSDP2 and DeepSpeed move nothing: two ranks that shard the model train it as two that each hold it whole."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from places import SUPPORT
from torch.testing import assert_close

SCRIPT = SUPPORT / "sharded_run.py"
ALL = ("GRPO", "BAPO", "CAPO", "PPO", "PPO, shared")
DEEPSPEED = (pytest.mark.deepspeed, pytest.mark.distributed)


def run(kind: str, root: Path, out: Path) -> dict:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    if kind == "ddp":
        env["ACCELERATE_USE_CPU"] = "true"
        launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    else:  # with the file a user starts it with; its bfloat16 is left out to compare in float32
        config = root / "launch" / "accelerate" / f"{kind}.yaml"
        env |= {"ACCELERATE_TORCH_DEVICE": "cpu", "DS_ACCELERATOR": "cpu"}
        launcher = ["accelerate.commands.launch", "--config_file", str(config)]
        launcher += ["--num_processes", "2", "--mixed_precision", "no"]
    command = [sys.executable, "-m", *launcher, str(SCRIPT), kind, str(out)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(out, weights_only=True)


@pytest.fixture(scope="module")
def replicated(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    return run("ddp", root, tmp_path_factory.mktemp("ddp") / "found.pt")


@pytest.mark.parametrize(
    ("kind", "engine", "methods"),
    [
        pytest.param("fsdp2", "FSDP", set(ALL), marks=pytest.mark.distributed),
        pytest.param("zero2", "DeepSpeedEngine", set(ALL), marks=DEEPSPEED),
        pytest.param("zero3", "DeepSpeedEngine", {"BAPO", "CAPO", "PPO, shared"}, marks=DEEPSPEED),
    ],
)
def test_sharding_moves_nothing(
    kind: str, engine: str, methods: set[str], replicated: dict, root: Path, tmp_path: Path
) -> None:
    found = run(kind, root, tmp_path / "found.pt")
    assert set(found) == methods
    for method, sharded in found.items():
        whole = replicated[method]
        assert sharded["engine"].startswith(engine)
        assert whole["moved"] > 1e-2
        assert sharded["weights"].keys() == whole["weights"].keys()
        for name, tensor in sharded["weights"].items():
            assert_close(tensor, whole["weights"][name], rtol=0, atol=1e-5, msg=f"{method}: {name}")
        assert sharded["losses"] == pytest.approx(whole["losses"], abs=1e-5)
        assert max(map(abs, whole["losses"])) > 1e-2
        assert sharded["kept"] == whole["kept"]
        # CAPO reads the head's product as it is made; what it rejects must not hang on how the head is stored
        assert any(0.2 < share < 0.95 for share in whole["kept"]) == (method == "CAPO")
