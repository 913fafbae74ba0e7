"""Checkpoints that are either whole or absent, and a resume that continues exactly.

TRL restores model, optimizer, scheduler and RNG, but not the rollout buffer: resumed in mid-window it generates
again and trains on other samples. Here each rank also saves its buffer, its position in it and the objective's
running statistics; a reference that follows the policy is saved too. A checkpoint is written aside and renamed, so a
kill at any moment leaves the last one intact.

What a resume changes takes effect: transformers takes the learning rate, the schedule's base and the optimizer's
settings from the checkpoint, and the steps of logging, evaluation and saving from its trainer state. Here the moments
and the position in the schedule come from the checkpoint, everything else from the run's own arguments.
"""

# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportArgumentType=false
# Upstream annotates its trainers more widely than what their attributes hold once they are built.

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, reduce
from datasets import Dataset
from torch.optim.lr_scheduler import LambdaLR
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from posttrain.process.storage import StorageError, storage_fault

_STAGING = ".saving"
_SHARED = "shared_state.pt"
_REFERENCE = "reference.pt"
_ROWS_READ = 50_000


def _plain_cpu(storage: Any, location: str) -> Any:
    return storage if location.startswith("cpu:") else None


# Under torchrun on a CPU the trainer's device is "cpu:0", which torch.load has no place for.
torch.serialization.register_package(50, lambda _: None, _plain_cpu)


def state_file(checkpoint: str | os.PathLike[str], rank: int) -> Path:
    """Where one rank's own state lies inside a checkpoint."""
    return Path(checkpoint) / f"rollout_state_{rank}.pt"


class ExactResume:
    """Mixin before a `transformers.Trainer`. The host defines `rollout_state()` and `load_rollout_state(state)`."""

    _staging: str | None = None
    _own_groups: list[dict[str, Any]] | None = None

    def rollout_state(self) -> dict[str, Any]:
        raise NotImplementedError  # the host knows what its loop carries from step to step

    def load_rollout_state(self, state: dict[str, Any]) -> None:
        raise NotImplementedError  # the counterpart of `rollout_state`

    def shared_state(self) -> dict[str, Any]:
        """What every rank holds alike beside the policy, a critic say: written once. {} writes nothing."""
        return {}

    def load_shared_state(self, state: dict[str, Any]) -> None:
        """The counterpart of `shared_state`; called where that is not empty."""

    # Saving

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
        name = f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        written = os.path.join(staging, name)
        with saving(Path(parent) / name, _what_stands(Path(parent)), Path(staging)):
            self._staging = staging
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._staging = None
            torch.save(self.rollout_state(), state_file(written, args.process_index))
            if accelerator.is_main_process and (shared := self.shared_state()):
                torch.save(shared, Path(written) / _SHARED)
            if self._reference_follows() and accelerator.is_main_process:
                torch.save(accelerator.unwrap_model(self.ref_model).state_dict(), Path(written) / _REFERENCE)
        with saving(Path(parent) / name, _what_stands(Path(parent)), Path(staging)):
            if accelerator.is_main_process:
                publish(written, os.path.join(parent, name))
                shutil.rmtree(staging, ignore_errors=True)
                rotate_checkpoints(
                    parent, args.save_total_limit, state.best_model_checkpoint, use_mtime=False
                )

    def _reference_follows(self) -> bool:
        """Whether the reference moves with the policy, so that it is part of the run's state."""
        return bool(vars(self.args).get("sync_ref_model")) and vars(self).get("ref_model") is not None

    # Resuming

    def create_scheduler(self, *arguments: Any, **named: Any) -> Any:
        """Also notes the optimizer's settings as the run's arguments give them: it is the last call before a load."""
        scheduler = super().create_scheduler(*arguments, **named)
        self._own_groups = [
            {key: value for key, value in group.items() if key != "params"}
            for group in self.optimizer.param_groups
        ]
        return scheduler

    def _init_training_state(self, max_steps: int, *more: Any) -> tuple[int, int]:
        """Also takes the steps of logging, evaluation and saving from the arguments, not from the checkpoint."""
        position = super()._init_training_state(max_steps, *more)
        self.state.compute_steps(self.args, max_steps)
        self.state.train_batch_size = self._train_batch_size
        return position

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Also restores what this rank carried from step to step, and puts the run's own settings back."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        if self._own_groups is not None:
            own_settings(self.optimizer, self.lr_scheduler, self._own_groups)
        path = state_file(checkpoint, self.args.process_index)
        if not path.exists():
            raise FileNotFoundError(
                f"{checkpoint}: no {path.name}. The checkpoint was written by another trainer or with fewer "
                "processes; resume with the number of processes that wrote it."
            )
        # On the CPU first: each tensor moves to its device when the host takes it.
        self.load_rollout_state(torch.load(path, map_location="cpu", weights_only=True))
        if self.shared_state():
            self._load_shared(Path(checkpoint) / _SHARED)
        if self._reference_follows():
            self._load_reference(Path(checkpoint) / _REFERENCE)

    def _load_shared(self, path: Path) -> None:
        if not path.exists():
            raise FileNotFoundError(
                f"{path.parent}: no {path.name}, which holds what this run trains beside the policy; a run of other "
                "settings wrote this checkpoint. Resume with the settings it was made with"
            )
        self.load_shared_state(torch.load(path, map_location="cpu", weights_only=True))

    def _load_reference(self, path: Path) -> None:
        if self.accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
            raise ValueError(
                f"sync_ref_model: under {self.accelerator.distributed_type.value} the reference that follows the "
                "policy is in no checkpoint, so this run cannot be continued; start it anew under DDP"
            )
        if not path.exists():
            raise FileNotFoundError(
                f"{path.parent}: no {path.name}: the reference that followed the policy was not saved; an earlier "
                "version wrote this checkpoint, and it cannot be continued"
            )
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.accelerator.unwrap_model(self.ref_model).load_state_dict(state)


def own_settings(optimizer: Any, scheduler: Any, groups: list[dict[str, Any]]) -> None:
    """The optimizer's and the schedule's settings as `groups` has them, at the step that the schedule is at.

    Schedules that keep more than a position (a plateau's) stay as the checkpoint has them.
    """
    if not isinstance(scheduler, LambdaLR):
        return
    bases = [group["initial_lr"] for group in groups]
    rates = [
        base * factor(scheduler.last_epoch) for base, factor in zip(bases, scheduler.lr_lambdas, strict=True)
    ]
    for group, own, rate in zip(optimizer.param_groups, groups, rates, strict=True):
        group.update(own, lr=rate)
    scheduler.base_lrs = bases
    scheduler._last_lr = rates


@contextmanager
def saving(what: Path, stands: str, aside: Path) -> Iterator[None]:
    """Around what all ranks write together: where one of them cannot, all stop, with one line and nothing half left.

    stands  what is whole in any case, and how to go on
    aside   what was begun, removed to make room
    """
    fault: str | None = None
    unexpected: Exception | None = None
    try:
        yield
    except Exception as error:
        fault = storage_fault(error, writing=True)
        if fault is None:
            raise
        unexpected = error
    if not _anywhere(fault is not None):
        return
    if PartialState().is_main_process:
        shutil.rmtree(aside, ignore_errors=True)
    raise StorageError(
        f"{what} cannot be written: {fault or 'another rank could not write its part'}; {stands}"
    ) from unexpected


def _anywhere(here: bool) -> bool:
    """Whether it is so on any rank. All ranks call it together; it also makes them wait for each other."""
    state = PartialState()
    if state.num_processes == 1:
        return here
    total = reduce(torch.tensor(float(here), device=state.device), reduction="sum")
    return bool(total.item() > 0)  # type: ignore[union-attr]  # tensor in, tensor out


def _what_stands(folder: Path) -> str:
    names = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)$")
    steps = (
        sorted(int(m[1]) for path in folder.iterdir() if (m := names.match(path.name)))
        if folder.is_dir()
        else []
    )
    if not steps:
        return "no checkpoint had been saved yet; make room and start again"
    return f"{PREFIX_CHECKPOINT_DIR}-{steps[-1]} is whole; make room, then --resume continues it"


def publish(written: str, final: str) -> None:
    """Renames a finished folder into place; an older one of the same name gives way only then."""
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


def rows_fingerprint(rows: Any) -> str | None:
    """Count and a short name of the rows a trainer reads, to tell one data set from another; None for a stream.

    Of more than 50,000 rows that many are read, spread over all of them.
    """
    if not isinstance(rows, Dataset):
        return None
    digest = hashlib.sha256()
    step = -(-len(rows) // _ROWS_READ) or 1
    # What is computed or sampled from the rows may differ in its last bits from one start to the next.
    made = [name for name in rows.column_names if name.startswith(("ref_", "imitation"))]
    read = rows.remove_columns(made)
    if step > 1:
        read = read.select(range(0, len(rows), step))
    for batch in read.iter(batch_size=1000):
        # what JSON has no word for (an image) counts by its kind alone: its text may name a place in memory
        digest.update(json.dumps(batch, sort_keys=True, default=lambda value: type(value).__name__).encode())
    return f"{len(rows)} rows, {digest.hexdigest()[:16]}"
