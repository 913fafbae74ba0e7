"""A run from top to bottom: find the folder, build the trainer, train, measure, report."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import datasets
import transformers.utils.logging
from transformers import TrainerState

from posttrain.observe.progress import ProgressView
from posttrain.process import exit_codes
from posttrain.process.phases import PHASES
from posttrain.recipe import Recipe, RecipeError
from posttrain.run.hub import push
from posttrain.run.run_folder import CHECKPOINTS, MODEL, REPORT, Opened, opened, replaced
from posttrain.run.session import Session
from posttrain.run.whole_page import report_run
from posttrain.trainers.seam.launch_check import join


def run(recipe: Recipe, *, resume: str | None = None) -> int:
    """Train what the recipe says; `resume` is a checkpoint folder, or "last". Returns the exit code."""
    with opened(recipe, resume) as start, ProgressView(recipe.output.name, enabled=_is_main()) as view:
        return run_opened(recipe, start, view)


def run_opened(recipe: Recipe, start: Opened, view: ProgressView, told: Sequence[str] = ()) -> int:
    """As `run`, for a run whose folder is open already, and its view too; `told` is what was said of the data."""
    run_dir, checkpoint = start.run_dir, start.checkpoint
    if start.ended:
        _say_finished(recipe, run_dir)
        return exit_codes.DONE
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(run_dir / "tensorboard"))

    datasets.disable_progress_bars()  # the run has a progress view of its own
    transformers.utils.logging.disable_progress_bar()
    with replaced(run_dir) if checkpoint is None else nullcontext():
        PHASES.say("loading the trainer")
        join(on_cpu=bool(recipe.train.use_cpu), patience_s=recipe.train.ddp_timeout)
        trainer = recipe.spec.load_trainer().from_recipe(recipe, output_dir=str(run_dir / CHECKPOINTS))
        PHASES.say("opening the run folder")
        session = Session(recipe, trainer, run_dir, view)
        session.begin(start.compared, told)
    PHASES.say("preparing the first step")
    if start.finished and checkpoint is not None:
        _take_up(trainer, checkpoint)
    else:
        trainer.train(resume_from_checkpoint=checkpoint)
    return session.end()


def _say_finished(recipe: Recipe, run_dir: Path) -> None:
    if not _is_main():
        return
    if not (run_dir / REPORT).exists():  # killed between the two
        report_run(run_dir)
    if recipe.output.hub is not None:
        print(push(run_dir / MODEL, recipe.output.hub))
    more = recipe.command_with("train.max_steps=N")
    print(f"{run_dir} is finished, and its model saved. For more steps: {more} --resume")


def _is_main() -> bool:
    return int(os.environ.get("RANK", "0")) == 0


def _take_up(trainer: Any, checkpoint: str) -> None:
    """The weights of a last step whose model was not saved any more, where a process can load them by itself."""
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        raise RecipeError(
            f"{checkpoint}: the run was killed between its last step and the saving of its model, and a sharded "
            "checkpoint is only loaded to train on; raise train.max_steps by one and resume"
        )
    trainer._load_from_checkpoint(checkpoint)
    trainer.state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
