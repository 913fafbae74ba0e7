"""vLLM in a process of its own for the tests: it takes over torch.distributed, threads and memory of its process.

python tests/support/colocated_run.py FOLDER tied|untied -> one line of JSON, the last of its output
torchrun --nproc_per_node 2 tests/support/colocated_run.py FOLDER ranks|between -> the same, from rank 0
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from accelerate import PartialState
from accelerate.utils import gather_object
from engine_checks import agreement, losses_of, losses_with, trainer_on, write_model
from rollout_fakes import nudge

from posttrain.recipe.sections import VLLMSection
from posttrain.rollout.base import Sampling, WeightsDiffer
from posttrain.rollout.vllm.colocated import VLLMColocated
from posttrain.trainers.engines.answers import EngineGenerator
from posttrain.trainers.engines.from_recipe import vllm_engine_of
from posttrain.trainers.models.load import character_tokenizer

SETTINGS = VLLMSection(gpu_memory_utilization=0.1, max_model_length=64, max_num_seqs=16, enforce_eager=True)


def engine_of(folder: Path, distributed: bool = False) -> VLLMColocated:
    return VLLMColocated(
        str(folder / "model"),
        dtype="float32",
        gpu_memory_utilization=0.1,
        max_model_length=64,
        max_num_seqs=16,
        enforce_eager=True,
        distributed=distributed,
    )


def in_ranks(folder: Path) -> dict[str, Any]:
    """Each of two ranks with an engine of its own and half the batch."""
    state = PartialState(cpu=True)
    if state.is_main_process:
        write_model(folder / "model")
    state.wait_for_everyone()
    trainer = trainer_on(folder / "model", folder / "run", per_device_train_batch_size=4)
    trainer.use_engine(engine_of(folder, distributed=True))
    trainer.train()
    gaps = [float(log["rollout/proof_gap"]) for log in trainer.state.log_history if "loss" in log]
    return {"ranks": state.num_processes, "losses": losses_of(trainer), "gap": max(gaps)}


def between_trainings(folder: Path) -> dict[str, Any]:
    """Two policies sampled one after the other, as a method in stages does; one rank has no prompt."""
    state = PartialState(cpu=True)
    if state.is_main_process:
        write_model(folder / "model").save_pretrained(folder / "later")
        character_tokenizer().save_pretrained(folder / "later")
    state.wait_for_everyone()
    engine_of = vllm_engine_of(SETTINGS, dtype="float32", base=folder / "base")
    generator = EngineGenerator(character_tokenizer(), engine_of)
    sampling = Sampling(temperature=1.0, max_new_tokens=5, seed=1)
    texts = []
    for name in ("model", "later"):
        generator.open(folder / name)
        mine = [[5, 6, 7]] if state.is_main_process else []
        texts.append(gather_object(generator(folder / name, mine, sampling)))
        generator.close()
        state.wait_for_everyone()
    return {"ranks": state.num_processes, "texts": texts}


def main(folder: Path, kind: str) -> dict[str, Any]:
    torch.set_num_threads(1)
    if kind == "ranks":
        return in_ranks(folder)
    if kind == "between":
        return between_trainings(folder)
    model = write_model(folder / "model", tied=kind == "tied")
    engine = engine_of(folder)
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
    found = main(Path(sys.argv[1]), sys.argv[2])
    if PartialState(cpu=True).is_main_process:
        print(json.dumps(found))
