"""DeepSpeed and FSDP2 move nothing: two ranks end with one process's weights, loss, norm and numbers.

Each pass's gradient is accumulated in shards, and the optimizer steps once, after the last pass of the last
micro-batch: a step taken early, a pass lost, or one counted twice would show in the weights.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from masked_helpers import model, train
from masked_sharded_run import runs
from places import SUPPORT
from torch.testing import assert_close

SCRIPT = SUPPORT / "masked_sharded_run.py"
METRICS = ("elbo", "drift", "largest_drift", "policy_loss", "kl", "reward", "signal/carried", "signal/tokens")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return runs(16, 1, tmp_path_factory.mktemp("whole"), None)


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("engine", "name"),
    [
        pytest.param("zero2", "zero2", marks=pytest.mark.deepspeed),
        pytest.param("zero3", "zero3", marks=pytest.mark.deepspeed),
        ("fsdp", "FSDPLlamaForCausalLM"),
    ],
)
def test_sharded_ranks_equal_one_process(engine, name, whole, tmp_path):
    out = tmp_path / "found.pt"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    env = {key: value for key, value in os.environ.items() if key != "ACCELERATE_USE_CPU"}
    command = [*launcher, str(SCRIPT), engine, "4", "2", str(out)]
    done = subprocess.run(
        command, env={**env, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = torch.load(out, weights_only=True)
    start = runs_start()
    assert whole.keys() - found.keys() == ({"VRPOOL with reference"} if engine == "zero3" else set())
    for run, mine in found.items():
        its = whole[run]
        assert mine["engine"] == name  # not the plain DDP that accelerate falls back to
        for a, b, before in zip(mine["weights"], its["weights"], start, strict=True):
            assert_close(a, b, rtol=1e-5, atol=1e-6)
            assert not torch.equal(b, before)  # something was learnt, in every parameter
        for a, b in zip(json.loads(mine["logs"]), json.loads(its["logs"]), strict=True):
            assert b["grad_norm"] > 1.0  # the clip was at work
            assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4), run
            for metric in METRICS:
                if metric in b:
                    assert a[metric] == pytest.approx(b[metric], rel=1e-4, abs=1e-5), f"{run}: {metric}"


def test_a_reference_under_zero3_is_refused_before_trl_reloads_it_causal(tmp_path, monkeypatch):
    monkeypatch.setattr("posttrain.trainers.masked.trainer.is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(ValueError, match="under ZeRO-3 needs an adapter"):
        train("BGPO", tmp_path, beta=0.1)


def runs_start():
    return [p.detach() for p in model().parameters()]
