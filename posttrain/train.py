"""A run from top to bottom: find the folder, build the trainer, train, measure, report."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import datasets
import transformers.utils.logging
from transformers import TrainerState
from transformers.trainer_utils import get_last_checkpoint

from posttrain.recipe import Recipe, RecipeError
from posttrain.session import MODEL, Session

CHECKPOINTS = "checkpoints"


def run(recipe: Recipe, *, resume: str | None = None) -> int:
    """Train what the recipe says; `resume` is a checkpoint folder, or "last". Returns the exit code."""
    run_dir = Path(recipe.output.run_dir)
    checkpoint = open_run_dir(recipe, run_dir, resume)
    finished = checkpoint is not None and has_no_step_left(recipe, Path(checkpoint))
    if finished and (run_dir / MODEL).exists():
        if int(os.environ.get("RANK", "0")) == 0:
            more = f"{recipe.train_command} --set train.max_steps=N --resume"
            print(f"{run_dir} is finished, and its model saved. For more steps: {more}")
        return 0
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(run_dir / "tensorboard"))

    datasets.disable_progress_bars()  # the run has a progress view of its own
    transformers.utils.logging.disable_progress_bar()
    with replaced(run_dir) if checkpoint is None else nullcontext():
        trainer = recipe.spec.load_trainer().from_recipe(recipe, output_dir=str(run_dir / CHECKPOINTS))
    session = Session(recipe, trainer, run_dir)
    session.begin(resumed=checkpoint is not None)
    if finished and checkpoint is not None:
        _take_up(trainer, checkpoint)
    else:
        trainer.train(resume_from_checkpoint=checkpoint)
    return session.end()


def has_no_step_left(recipe: Recipe, checkpoint: Path) -> bool:
    """Whether the checkpoint is of the run's last step. transformers, asked to go on from there, trains one step more.

    A run in stages looks after its own.
    """
    path = checkpoint / "trainer_state.json"
    if not path.is_file():
        return False
    state = json.loads(path.read_text(encoding="utf-8"))
    wanted = recipe.train.max_steps
    if wanted is None and state["num_train_epochs"] >= (recipe.train.num_train_epochs or 0):
        wanted = state["max_steps"]
    return wanted is not None and state["global_step"] >= wanted


def _take_up(trainer: Any, checkpoint: str) -> None:
    """The weights of a last step whose model was not saved any more, where a process can load them by itself."""
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        raise RecipeError(
            f"{checkpoint}: the run was killed between its last step and the saving of its model, and a sharded "
            "checkpoint is only loaded to train on; raise train.max_steps by one and resume"
        )
    trainer._load_from_checkpoint(checkpoint)
    trainer.state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))


def open_run_dir(recipe: Recipe, run_dir: Path, resume: str | None) -> str | None:
    """The checkpoint to continue from, or None for a fresh run. A run folder is never written over unasked."""
    existing = run_dir / CHECKPOINTS
    if resume is not None:
        last = _last_checkpoint(existing)
        found = last if resume == "last" else resume
        if found is None or not Path(found).is_dir():
            raise RecipeError(
                f"{recipe.path}: --resume: no checkpoint at {found or existing}; start without --resume"
            )
        return found
    if run_dir.exists() and any(run_dir.iterdir()) and not recipe.output.overwrite:
        raise RecipeError(
            f"{recipe.path}: output: {run_dir} already holds a run; --resume continues it, "
            "--set output.overwrite=true replaces it, --set output.name=NAME starts beside it"
        )
    return None


@contextmanager
def replaced(run_dir: Path) -> Iterator[None]:
    """Takes an old run away once what is done within has not failed; else it is there again as before."""
    if int(os.environ.get("RANK", "0")) != 0:
        yield
        return
    aside = run_dir.with_name(f".{run_dir.name}.replaced")
    shutil.rmtree(aside, ignore_errors=True)  # of a start that was killed
    if not run_dir.exists():
        yield
        return
    run_dir.rename(aside)
    try:
        yield
    except BaseException:
        shutil.rmtree(run_dir, ignore_errors=True)
        aside.rename(run_dir)
        raise
    shutil.rmtree(aside)


def _last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint; a run in stages is continued as a whole, by its folder."""
    if (folder / "run.json").is_file():
        return str(folder)
    return get_last_checkpoint(str(folder)) if folder.is_dir() else None
