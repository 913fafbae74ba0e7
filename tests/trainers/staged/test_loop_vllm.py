"""DRIFT with the real vLLM, from the command line: an engine for each stage, made and closed in one process.

The smoke log's 146 prompts are more tokens than vLLM reads at once, and each row has a seed of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.vllm
def test_a_loop_samples_each_stage_with_vllm(root: Path, tmp_path: Path) -> None:
    changes = [
        "model={scratch: {hidden_size: 64, layers: 1, heads: 2, max_positions: 256}}",
        "rollout={engine: vllm, temperature: 0.7, top_p: 0.9, max_new_tokens: 4, "
        "vllm: {gpu_memory_utilization: 0.1, enforce_eager: true, max_model_length: 256}}",
        "train.num_train_epochs=null",
        "train.max_steps=1",
        "output={name: run, report_to: []}",
        f"output.dir={tmp_path}",
    ]
    command = [sys.executable, "-m", "posttrain", "train", "recipes/smoke/drift_calm.yaml"]
    for change in changes:
        command += ["--set", change]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    for stage in ("000", "001"):
        file = tmp_path / "run" / "checkpoints" / "stages" / stage / "samples-0.jsonl"
        samples = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        assert [sample["row"] for sample in samples] == list(range(146))
        assert len({sample["text"] for sample in samples}) > 100  # every row drew for itself
