"""vLLM in the training process: the same tokens and log-probs as transformers, before training and after each sync."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from places import SUPPORT

pytestmark = pytest.mark.vllm

SCRIPT = SUPPORT / "colocated_run.py"


def run(folder: Path, kind: str) -> dict:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    launcher = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        if kind in ("ranks", "between")
        else []
    )
    env["ACCELERATE_USE_CPU"] = "true"
    command = [sys.executable, *launcher, str(SCRIPT), str(folder), kind]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=540)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> dict:
    return run(tmp_path_factory.mktemp("untied"), "untied")


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> dict:
    return run(tmp_path_factory.mktemp("tied"), "tied")


@pytest.mark.parametrize("kind", ["untied", "tied"])
def test_it_agrees_with_transformers_before_and_after_every_sync(
    kind: str, request: pytest.FixtureRequest
) -> None:
    found = request.getfixturevalue(kind)
    for one in (found["start"], *found["synced"]):
        assert one["greedy"]
        assert one["gap"] < 1e-4
    assert found["stale"]["gap"] > 1e-2  # the check can fail: without the sync it does


def test_training_with_it_is_training_with_transformers_on_the_same_tokens(untied: dict) -> None:
    assert untied["losses"]["engine"] == pytest.approx(untied["losses"]["transformers"], abs=1e-4)
    assert max(map(abs, untied["losses"]["engine"])) > 1e-2


def test_a_skipped_sync_is_caught_by_name(untied: dict) -> None:
    assert "First tensor that differs: model.embed_tokens.weight" in untied["skipped"]


@pytest.mark.distributed
def test_two_ranks_with_an_engine_each_train_as_one_does(untied: dict, tmp_path: Path) -> None:
    found = run(tmp_path, "ranks")
    assert found["ranks"] == 2
    assert found["gap"] < 1e-4
    assert found["losses"] == pytest.approx(untied["losses"]["engine"], abs=1e-3)


@pytest.mark.distributed
def test_engines_come_and_go_without_taking_the_process_group_along(tmp_path: Path) -> None:
    found = run(tmp_path, "between")
    assert found["ranks"] == 2
    first, second = found["texts"]
    assert first == second  # the same policy, saved twice
    assert len(first) == 1
    assert first[0]


def test_a_head_size_without_a_kernel_is_refused_before_vllm_starts(tmp_path: Path) -> None:
    from posttrain.rollout.base import EngineError
    from posttrain.rollout.vllm.colocated import check_cpu_model
    from posttrain.trainers.models.load import character_tokenizer, scratch_llama

    scratch_llama(character_tokenizer(), hidden_size=64, heads=4).save_pretrained(tmp_path)
    with pytest.raises(EngineError, match="heads of size 16; on a CPU vLLM has only 32, 64"):
        check_cpu_model(str(tmp_path))
