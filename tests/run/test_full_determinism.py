"""`train.full_determinism: true`: the setting reaches torch, and two runs have the same bits."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from small_recipe import Load

from posttrain.cli import main
from posttrain.observe.writer import read_metrics
from posttrain.run.plan import make_plan

RECIPE = {
    "method": "bapo",
    "model": {
        "scratch": {
            "hidden_size": 32,
            "layers": 2,
            "heads": 2,
            "alphabet": "0123456789>",
            "max_positions": 64,
        }
    },
    "data": {"name": "sort", "args": {"size": 64, "held_out": 16}, "eval": {"limit": 8}},
    "rewards": [{"name": "exact_match"}, {"name": "own.py:low"}],
    "rollout": {"group_size": 4, "max_new_tokens": 6},
    "train": {
        "max_steps": 4,
        "per_device_train_batch_size": 16,
        "steps_per_generation": 2,
        "learning_rate": 1e-3,
        "full_determinism": True,
        "gradient_checkpointing": False,
        "use_cpu": True,
    },
    "output": {"save_steps": 4, "report_to": []},
}
REWARD = "def low(completions, **_):\n    return [float(text[:1] < '5') for text in completions]\n"


@pytest.fixture
def put_back() -> Iterator[None]:
    """The setting holds for the process; other tests shall not have it."""
    environment = dict(os.environ)
    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn
    os.environ.clear()
    os.environ.update(environment)


def weights(run: str) -> dict[str, torch.Tensor]:
    return load_file(f"runs/{run}/model/model.safetensors")


def test_two_runs_are_bit_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, put_back: None) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(REWARD)
    Path("r.yaml").write_text(yaml.safe_dump(RECIPE))
    for run, seed in (("one", 0), ("two", 0), ("other", 1)):
        torch.use_deterministic_algorithms(False)
        torch.rand(seed + 3)  # a process that has drawn numbers before
        assert main(["train", "r.yaml", "--set", f"output.name={run}", "--set", f"train.seed={seed}"]) == 0
        assert torch.are_deterministic_algorithms_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    one, two, other = weights("one"), weights("two"), weights("other")
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)
    names = ("loss", "reward")
    logged = [
        [[row.get(name) for name in names] for row in read_metrics(f"runs/{run}") if "loss" in row]
        for run in ("one", "two")
    ]
    assert logged[0] == logged[1]
    assert sum(loss is not None for loss, _ in logged[0]) >= 4


def test_the_plan_says_what_it_costs_and_does_not_reach(load: Load) -> None:
    def said(**sections: object) -> str:
        return "\n".join(make_plan(load(**sections)).warnings)

    assert "full_determinism" not in said()
    told = said(train={"full_determinism": True})
    assert "CUBLAS_WORKSPACE_CONFIG=:16:8" in told
    assert "may sample other tokens" not in told
    assert "full_determinism" not in said(train={"full_determinism": True, "use_cpu": True})
    served = said(train={"full_determinism": True, "use_cpu": True}, rollout={"engine": "vllm_server"})
    assert "rollout.engine vllm_server may sample other tokens" in served
