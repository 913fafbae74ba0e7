"""Checkpoints that are either whole or absent, and a resume that continues exactly.

TRL restores model, optimizer, scheduler and RNG, but not the rollout buffer: resumed in mid-window it generates
again and trains on other samples. Here each rank also saves its buffer, its position in it and the objective's
running statistics. A checkpoint is written aside and renamed, so a kill at any moment leaves the last one intact.
"""

# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportArgumentType=false
# Upstream annotates its trainers more widely than what their attributes hold once they are built.

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

_STAGING = ".saving"


def state_file(checkpoint: str | os.PathLike[str], rank: int) -> Path:
    """Where one rank's own state lies inside a checkpoint."""
    return Path(checkpoint) / f"rollout_state_{rank}.pt"


class ExactResume:
    """Mixin before a `transformers.Trainer`. The host defines `rollout_state()` and `load_rollout_state(state)`."""

    _staging: str | None = None

    def rollout_state(self) -> dict[str, Any]:
        raise NotImplementedError  # the host knows what its loop carries from step to step

    def load_rollout_state(self, state: dict[str, Any]) -> None:
        raise NotImplementedError  # the counterpart of `rollout_state`

    def _get_output_dir(self, trial: Any) -> str:
        """Replaces the checkpoint folder's parent while a checkpoint is being written."""
        return self._staging if self._staging is not None else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Writes the checkpoint aside, adds this rank's state, then renames the whole folder into place."""
        parent = super()._get_output_dir(trial)
        accelerator, args, state = self.accelerator, self.args, self.state
        staging = os.path.join(parent, _STAGING)
        if accelerator.is_main_process:
            shutil.rmtree(staging, ignore_errors=True)
        accelerator.wait_for_everyone()
        self._staging = staging
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._staging = None
        name = f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        torch.save(self.rollout_state(), state_file(os.path.join(staging, name), args.process_index))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            _publish(os.path.join(staging, name), os.path.join(parent, name))
            shutil.rmtree(staging, ignore_errors=True)
            rotate_checkpoints(parent, args.save_total_limit, state.best_model_checkpoint, use_mtime=False)
        accelerator.wait_for_everyone()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Also restores what this rank carried from step to step."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        path = state_file(checkpoint, self.args.process_index)
        if not path.exists():
            raise FileNotFoundError(
                f"{checkpoint}: no {path.name}. The checkpoint was written by another trainer or with fewer "
                "processes; resume with the number of processes that wrote it."
            )
        # On the CPU first: each tensor moves to its device when the host takes it.
        self.load_rollout_state(torch.load(path, map_location="cpu", weights_only=True))


def _publish(written: str, final: str) -> None:
    """Renames a finished checkpoint into place; an older one of the same step gives way only then."""
    _sync_files(written)
    if os.path.exists(final):
        aside = final + ".old"
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(final, aside)
        os.replace(written, final)
        shutil.rmtree(aside)
    else:
        os.replace(written, final)


def _sync_files(folder: str) -> None:
    """The rename must not reach the disk before the files it publishes."""
    for directory, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(directory, name), "rb") as file:
                os.fsync(file.fileno())
