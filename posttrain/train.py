"""A run from top to bottom: find the folder, build the trainer, train, measure, report."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import datasets
import transformers.utils.logging
from transformers.trainer_utils import get_last_checkpoint

from posttrain.recipe import Recipe, RecipeError
from posttrain.session import Session

CHECKPOINTS = "checkpoints"


def run(recipe: Recipe, *, resume: str | None = None) -> int:
    """Train what the recipe says; `resume` is a checkpoint folder, or "last". Returns the exit code."""
    run_dir = Path(recipe.output.run_dir)
    checkpoint = open_run_dir(recipe, run_dir, resume)
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(run_dir / "tensorboard"))

    datasets.disable_progress_bars()  # the run has a progress view of its own
    transformers.utils.logging.disable_progress_bar()
    trainer = recipe.spec.load_trainer().from_recipe(recipe, output_dir=str(run_dir / CHECKPOINTS))
    session = Session(recipe, trainer, run_dir)
    session.begin(resumed=checkpoint is not None)
    trainer.train(resume_from_checkpoint=checkpoint)
    return session.end()


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
    if run_dir.exists() and any(run_dir.iterdir()):
        if not recipe.output.overwrite:
            raise RecipeError(
                f"{recipe.path}: output: {run_dir} already holds a run; --resume continues it, "
                "--set output.overwrite=true replaces it, --set output.name=NAME starts beside it"
            )
        if int(os.environ.get("RANK", "0")) == 0:
            shutil.rmtree(run_dir)
    return None


def _last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint; a run in stages is continued as a whole, by its folder."""
    if (folder / "run.json").is_file():
        return str(folder)
    return get_last_checkpoint(str(folder)) if folder.is_dir() else None
