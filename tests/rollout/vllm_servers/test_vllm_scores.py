"""A real vLLM server that runs a reward model: its scores are transformers'."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from engine_checks import write_model

from posttrain.rewards.model_reward import ModelReward
from posttrain.rollout.vllm.client import Server
from posttrain.trainers.models.load import character_tokenizer
from posttrain.trainers.models.reward_heads import as_reward_model
from posttrain.trainers.models.reward_scorer import RewardScorer
from posttrain.trainers.models.scoring_apis import VLLMScores
from posttrain.trainers.models.served_scorer import ServedScorer

pytestmark = pytest.mark.vllm


def test_a_pooling_server_gives_the_scores_of_the_model_here(tmp_path: Path) -> None:
    scorer = as_reward_model(write_model(tmp_path / "lm"), 0)
    torch.nn.init.normal_(scorer.score.weight, generator=torch.Generator().manual_seed(0))
    scorer.save_pretrained(tmp_path / "rm")
    character_tokenizer().save_pretrained(tmp_path / "rm")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(tmp_path / "rm")]
    command += ["--runner", "pooling", "--dtype", "float32", "--enforce-eager", "--max-model-len", "40"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--gpu-memory-utilization", "0.2"]
    env = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "OMP_NUM_THREADS": "1"}
    env.pop("VLLM_API_KEY", None)
    url = f"http://127.0.0.1:{port}"
    prompts, answers = [f"{i}+{i}=" for i in range(9)], ["four " * (1 + 2 * i) for i in range(9)]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
        try:
            Server(url, role=VLLMScores.role).wait_until_up(300.0)
            there = ServedScorer(ModelReward(str(tmp_path / "rm"), server=url, batch_size=4))
            found = there.score(prompts, answers)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(20)
    here = RewardScorer(ModelReward(str(tmp_path / "rm"), max_length=40), "cpu")
    scores = here.score(prompts, answers)
    assert there.cut == here.cut > 0  # by the server's own limit
    assert max(scores) - min(scores) > 0.01
    assert found == pytest.approx(scores, abs=1e-4)
