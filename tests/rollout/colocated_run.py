"""vLLM in a process of its own for the tests: it takes over torch.distributed, threads and memory of its process.

python tests/rollout/colocated_run.py FOLDER tied|untied -> one line of JSON, the last of its output
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from engine_checks import agreement, losses_with, write_model
from rollout_fakes import nudge

from posttrain.rollout.base import WeightsDiffer
from posttrain.rollout.vllm_colocated import VLLMColocated


def main(folder: Path, kind: str) -> dict[str, Any]:
    torch.set_num_threads(1)
    model = write_model(folder / "model", tied=kind == "tied")
    engine = VLLMColocated(
        str(folder / "model"),
        dtype="float32",
        gpu_memory_utilization=0.1,
        max_model_length=64,
        max_num_seqs=16,
        enforce_eager=True,
    )
    found: dict[str, Any] = {"start": agreement(engine, model), "synced": [], "stale": None}
    for version in (1, 2, 3):
        nudge(model, version)
        if version == 1:
            found["stale"] = agreement(engine, model)
        engine.update_weights(model.named_parameters(), version)
        found["synced"].append(agreement(engine, model))
    if kind == "tied":
        return found
    found["losses"] = losses_with(engine, folder / "run")
    engine.update_weights = lambda named_tensors, version: None  # type: ignore[method-assign]  # the sync that is skipped
    try:
        losses_with(engine, folder / "skipped")
    except WeightsDiffer as error:
        found["skipped"] = str(error)
    return found


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), sys.argv[2])))
