"""Which weights of a run are meant: its model's or a checkpoint's, gathered or in shards. No torch.

    DDP, ZeRO-1, ZeRO-2          gathered in every checkpoint and in model/
    FSDP2, FULL_STATE_DICT       the same (launch/accelerate/fsdp2.yaml)
    ZeRO-3, zero3_save_16bit_model: true   the same (launch/accelerate/zero3.yaml)
    ZeRO-3 without it            shards of DeepSpeed in the checkpoint, model/ without weights
    FSDP2, SHARDED_STATE_DICT    shards of torch.distributed.checkpoint, model/ without weights or config

Beside gathered weights ZeRO keeps its shards, whose weights are float32 where training is in 16 bits.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from posttrain.observe.writer import read_events
from posttrain.planning.saved_model import holds_model
from posttrain.rollout.flow.flow_folder import SAVED
from posttrain.run.run_folder import CHECKPOINTS, MODEL, holds_run, is_staged, step_of

LAST = "last"
FSDP_SHARDS = "pytorch_model_fsdp_0"
"""accelerate's folder of a torch.distributed.checkpoint."""
_ZERO_TAG = "latest"


class ExportFault(ValueError):
    """What cannot be exported, in one line: where, what, what to do."""


@dataclass(frozen=True)
class SavedWeights:
    """Weights of one step.

    folder   what was chosen: model/, a checkpoint, or the policy of a stage
    step     optimizer steps behind it; None where the run has not noted it
    gathered whether the folder has the weights in whole files, those of a model or of an adapter
    shards   the checkpoint that has the same weights in shards, if any
    """

    folder: Path
    step: int | None
    gathered: bool
    shards: Path | None = None
    base: Path | None = None

    @property
    def sharding(self) -> Literal["zero", "fsdp"] | None:
        return None if self.shards is None else sharding_of(self.shards)


def saved_weights(run_dir: Path, which: str = LAST) -> SavedWeights:
    """The weights of optimizer step `which`, or the newest. ExportFault says why there are none."""
    _check_run(run_dir)
    if which != LAST and not re.fullmatch(r"\d+", which):
        raise ExportFault(f"--checkpoint: {which!r} is no step; write a number or {LAST}")
    checkpoints = run_dir / CHECKPOINTS
    if is_staged(checkpoints):
        return _of_stages(run_dir, checkpoints, which)
    steps = _steps(checkpoints)
    if which == LAST:
        return _newest(run_dir, steps)
    if int(which) not in steps:
        raise ExportFault(f"{run_dir} has no checkpoint of step {which}; {_there(run_dir, sorted(steps))}")
    return _checkpoint(steps[int(which)])


def has_weights(folder: Path) -> bool:
    """Whether the folder is a model's, or an adapter's, with its weights in files that transformers or peft read."""
    known = holds_model(folder) or (folder / SAVED).is_file()  # of images, out of a pipeline
    return known and any(folder.glob("*.safetensors"))


def sharding_of(folder: Path) -> Literal["zero", "fsdp"] | None:
    if (folder / _ZERO_TAG).is_file():
        return "zero"
    return "fsdp" if (folder / FSDP_SHARDS / ".metadata").is_file() else None


def _check_run(run_dir: Path) -> None:
    if not run_dir.is_dir():
        raise ExportFault(f"there is no folder {run_dir}; give a run's folder, runs/NAME")
    if holds_run(run_dir):
        return
    step = re.fullmatch(r"checkpoint-(\d+)", run_dir.name)
    if step is not None and run_dir.parent.name == CHECKPOINTS:
        raise ExportFault(
            f"{run_dir} is a checkpoint; name its run: {run_dir.parent.parent} --checkpoint {step[1]}"
        )
    if holds_model(run_dir):
        above = f", or its run, {run_dir.parent}" if holds_run(run_dir.parent) else ""
        raise ExportFault(
            f"{run_dir} is a model's folder, no run's; posttrain merge takes an adapter's{above}"
        )
    raise ExportFault(f"{run_dir} holds no run of posttrain; give a run's folder, runs/NAME")


def _steps(checkpoints: Path) -> dict[int, Path]:
    """Checkpoints that are whole, by their step."""
    found = checkpoints.iterdir() if checkpoints.is_dir() else ()
    return {int(m[1]): path for path in found if (m := re.fullmatch(r"checkpoint-(\d+)", path.name))}


def _there(run_dir: Path, steps: list[int]) -> str:
    model = f"without --checkpoint its model, {run_dir / MODEL}" if has_weights(run_dir / MODEL) else ""
    there = f"there are those of {', '.join(map(str, steps))}" if steps else ""
    return (
        "; ".join(part for part in (there, model) if part)
        or "it was stopped before it had saved one; train on"
    )


def _newest(run_dir: Path, steps: dict[int, Path]) -> SavedWeights:
    model, last = run_dir / MODEL, max(steps, default=None)
    if has_weights(model):
        noted = [event["step"] for event in read_events(run_dir) if event["event"] == "model"]
        step = int(noted[-1]) if noted else None
        if step is None or last is None or step >= last:
            shards = steps.get(step) if step is not None else None
            sharded = shards is not None and sharding_of(shards) is not None
            return SavedWeights(model, step, True, shards if sharded else None)
    if last is None:
        raise ExportFault(
            f"{run_dir} has saved no checkpoint and no model yet; train it on, or lower output.save_steps"
        )
    return _checkpoint(steps[last])


def _checkpoint(folder: Path) -> SavedWeights:
    gathered, sharding = has_weights(folder), sharding_of(folder)
    if not gathered and sharding is None:
        raise ExportFault(
            f"{folder} holds no weights that are known: no .safetensors beside a config, no shards of DeepSpeed "
            f"({_ZERO_TAG}) or FSDP ({FSDP_SHARDS}/); export another step"
        )
    return SavedWeights(folder, step_of(folder), gathered, folder if sharding else None)


def _of_stages(run_dir: Path, checkpoints: Path, which: str) -> SavedWeights:
    """A run in stages keeps the policy after each; `which` counts stages."""
    policies = {
        int(path.name): path for path in checkpoints.glob("policies/*") if re.fullmatch(r"\d+", path.name)
    }
    done = sorted(number for number in policies if number > 0)
    base = checkpoints / "base" if holds_model(checkpoints / "base") else None
    model = run_dir / MODEL
    if which == LAST and has_weights(model):
        noted = [event["step"] for event in read_events(run_dir) if event["event"] == "model"]
        return SavedWeights(model, int(noted[-1]) if noted else None, True, base=base)
    if not done:
        raise ExportFault(f"{run_dir} trains in stages and has finished none yet; train it on")
    number = done[-1] if which == LAST else int(which)
    if number not in done:
        raise ExportFault(
            f"{run_dir} trains in stages: --checkpoint counts them, and there is no policy after stage {which}; there "
            f"are those after {', '.join(map(str, done))}"
        )
    steps = sum(_stage_steps(checkpoints / "stages" / f"{n:03d}") for n in range(number))
    return SavedWeights(policies[number], steps, True, base=base)


def _stage_steps(stage: Path) -> int:
    try:
        return int(json.loads((stage / "done.json").read_text(encoding="utf-8")).get("steps", 0))
    except (OSError, ValueError):
        return 0
