"""Neither the number of ranks nor the split into micro-batches moves anything: groups straddle both."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from places import SUPPORT
from torch.testing import assert_close

SCRIPT = SUPPORT / "split_run.py"
PROPOSED = ("proposed_objective", "proposed_policy", "objective", "policy")
METRICS = {
    "GRPO": {"kl", "entropy", "signal/carried", "signal/tokens"},
    "GRPO, ordered": {"entropy"},
    "BAPO": {"bapo/clip_low", "bapo/clip_high", "bapo/positive_share_before", "entropy"},
    "BNPO": {"bnpo/alpha", "bnpo/beta", "entropy"},
    "COPO": {"copo/answer_entropy", "copo/global_advantage_abs", "entropy", "signal/carried"},
    "CAPO": {"kept_share", "signal/curvature", "capo/rejected_share", "entropy"},
    "PPO": {"kl", "ppo/value_loss", "ppo/explained_variance", "ppo/critic_grad_norm"},
    "PPOMax, shared": {"ppo_max/value_loss", "ppo_max/reward_std_so_far", "ppo_max/value_mean"},
    "PPOMax, texts": {"ppo_max/ptx_loss", "ppo_max/ptx_tokens", "ppo_max/ptx_passes"},
    "OPD": {"opd/reverse_kl", "entropy"},
    "OnlineDPO": {
        "online_dpo/pair_loss",
        "online_dpo/parl_size",
        "online_dpo/paired",
        "signal/left_out",
        "kl",
    },
    "CAPO, calibrated": {"kept_share", *(f"capo/{proposed}_threshold" for proposed in PROPOSED), "entropy"},
}


def run(processes: int, batch: int, accumulation: int, folder: Path) -> dict:
    out = folder / f"{processes}x{batch}x{accumulation}.pt"
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [*launcher, str(SCRIPT), str(batch), str(accumulation), str(out)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(out, weights_only=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run(1, 24, 1, tmp_path_factory.mktemp("whole"))


@pytest.mark.distributed
@pytest.mark.parametrize("split", [(1, 6, 4), (2, 6, 2)], ids=["four_micro_batches", "two_ranks"])
def test_ranks_and_micro_batches_move_nothing(split, whole, tmp_path):
    found = run(*split, tmp_path)
    for method, metrics in METRICS.items():
        mine, its = found[method], whole[method]
        exact = (
            {} if method.startswith(("PPO", "OPD")) else {"rtol": 0, "atol": 0}
        )  # values and a teacher's log-probs are of another batch's products
        for a, b in zip(mine["advantages"], its["advantages"], strict=True):
            assert_close(a, b, **exact)
        for a, b in zip(mine["weights"], its["weights"], strict=True):
            assert_close(a, b, rtol=1e-5, atol=2e-6)
        for a, b in zip(json.loads(mine["logs"]), json.loads(its["logs"]), strict=True):
            assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)
            assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)
            assert b["grad_norm"] > 0
            for name in metrics & b.keys():  # those of the rollout are logged on rollout steps only
                assert a[name] == pytest.approx(b[name], rel=1e-4, abs=1e-6), f"{method}: {name}"
        if method == "CAPO":  # or the masks of ranks could not differ
            kept = [log["kept_share"] for log in json.loads(its["logs"])]
            assert min(kept) < 0.95
            assert min(kept) > 0.1
        assert metrics <= {name for log in json.loads(its["logs"]) for name in log}, method
