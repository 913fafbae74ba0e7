"""Around a trainer's run: the run folder, the live view, the held-out measurement before and after, the report."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from posttrain.observe.model_card import write_card
from posttrain.observe.progress import ProgressView
from posttrain.observe.reliability import read_reliability
from posttrain.observe.run_page import print_reliability
from posttrain.observe.writer import RunWriter, read_environment
from posttrain.planning.launcher import engine_asked
from posttrain.process import exit_codes
from posttrain.process.phases import PHASES
from posttrain.process.stop_requests import REQUESTS
from posttrain.recipe import Recipe, RecipeError
from posttrain.run.benchmarks import AtCheckpoints
from posttrain.run.continuing import Compared
from posttrain.run.hub import push
from posttrain.run.run_folder import MODEL, how_to_go_on
from posttrain.run.saved_weights import has_weights
from posttrain.run.whole_page import report_run
from posttrain.trainers.preference.pair_rows import PairCounts
from posttrain.trainers.reporting.callbacks import HeldOut, RunCallback, attach
from posttrain.trainers.reporting.rollout_columns import held_out_rollouts, last_rollout
from posttrain.trainers.seam.launch_check import check_engine, introduce
from posttrain.trainers.seam.resume import publish, rows_fingerprint, saving
from posttrain.trainers.seam.stopping import StopOnSignal

_ASIDE = ".model.saving"


class Session:
    """`begin`, then the trainer's own `train`, then `end`. Only rank 0 writes and prints."""

    def __init__(self, recipe: Recipe, trainer: Any, run_dir: Path, view: ProgressView) -> None:
        check_engine(trainer.accelerator)
        introduce(trainer.accelerator)
        self.recipe = recipe
        self.trainer = trainer
        self.run_dir = run_dir
        self.is_main = trainer.accelerator.is_main_process
        self.view = view
        self.console = view.console
        self.held_out: HeldOut | None = None
        self.stop = StopOnSignal()

    def begin(self, compared: Compared | None = None, told: Sequence[str] = ()) -> None:
        """Opens the run folder and hands the trainer its callbacks.

        compared  of a run that is resumed: what its recipe changes
        told      what the plan has said of the data, which is not said again
        """
        trainer, recipe = self.trainer, self.recipe
        writer = RunWriter(self.run_dir) if self.is_main else None
        if writer is not None:
            self._open_folder(writer, compared)
            self._tell_of_rows(told)
        resumed = compared is not None
        REQUESTS.last_words = self._last_words
        attach(
            trainer,
            RunCallback(
                writer,
                self.view,
                completions=partial(last_rollout, trainer) if recipe.output.log_completions else None,
            ),
        )
        trainer.add_callback(self.stop)
        if recipe.evaluation is not None:
            trainer.add_callback(AtCheckpoints(trainer, recipe.evaluation, self.run_dir, writer, self.view))
        if trainer.eval_dataset is not None:
            self.held_out = HeldOut(writer, partial(held_out_rollouts, trainer))
            if resumed and self.is_main:
                self.held_out.take_up(self.run_dir)
            trainer.add_callback(self.held_out)
            trainer.args.eval_on_start = not resumed

    def _open_folder(self, writer: RunWriter, compared: Compared | None) -> None:
        """Everything that can be refused is looked at first, then written."""
        rows = None if self.trainer.train_dataset is None else rows_fingerprint(self.trainer.train_dataset)
        if compared is not None:
            before = read_environment(self.run_dir).get("rows")
            if None not in (rows, before) and before != rows:
                raise RecipeError(
                    f"{self.recipe.path}: --resume: the training rows are not those the run began with ({before}, now "
                    f"{rows}): rows would be repeated or skipped; resume with the old data, or start anew with "
                    "--set output.name=NAME"
                )
            for line in compared.in_words():
                self._say(line)
            writer.write_recipe_changes(compared.step, compared.changes)
        writer.write_recipe(self.recipe.resolved())
        writer.write_environment(
            seed=self.recipe.train.seed,
            world_size=self.trainer.accelerator.num_processes,
            engine=engine_asked(),
            rows=rows,
        )

    def _tell_of_rows(self, told: Sequence[str]) -> None:
        """What loading left out, where the plan could not know it."""
        counts = self.trainer.row_counts
        if isinstance(counts, PairCounts):
            return  # a trainer of pairs has said it while it was built
        if counts is not None and f"training: {counts.in_words()}" not in told:
            self.console.print(f"data: {counts.in_words()}", highlight=False, markup=False, soft_wrap=True)

    def _last_words(self) -> str:
        if not self.is_main:
            return ""
        return f"stopped at once; {how_to_go_on(self.recipe, same_launcher=self._launched)}"

    @property
    def _launched(self) -> bool:
        return self.trainer.accelerator.num_processes > 1

    def end(self) -> int:
        """Saves the model, measures again, writes the report. Returns the exit code: STOPPED when that came first."""
        trainer = self.trainer
        if self.stop.asked and trainer.state.global_step < trainer.state.max_steps:
            launcher = "the same launcher and " if self._launched else ""
            self._say(
                f"stopped at step {trainer.state.global_step} of {trainer.state.max_steps}; "
                f"continue with: {launcher}{self.recipe.train_command} --resume"
            )
            return exit_codes.STOPPED
        REQUESTS.ending = True
        if self.held_out is not None and self.held_out.last_step != trainer.state.global_step:
            trainer.evaluate()
        self._save_model()
        if self.is_main:
            PHASES.say("writing the report")
            self._show_result()
        return exit_codes.DONE

    def _save_model(self) -> None:
        """Written aside and renamed: a kill leaves a model that is whole, or none."""
        trainer, aside = self.trainer, self.run_dir / _ASIDE
        if self.is_main:
            shutil.rmtree(aside, ignore_errors=True)
        trainer.accelerator.wait_for_everyone()
        PHASES.say("saving the model")
        stands = f"make room, then {how_to_go_on(self.recipe, same_launcher=self._launched)}"
        with saving(self.run_dir / MODEL, stands, aside):
            trainer.save_model(str(aside))
        with saving(self.run_dir / MODEL, stands, aside):
            if self.is_main:
                trainer.processing_class.save_pretrained(aside)
                write_card(aside, self.run_dir, held_out=self._held_out_rows)
                publish(str(aside), str(self.run_dir / MODEL))
                RunWriter(self.run_dir).event("model", step=trainer.state.global_step)

    @property
    def _held_out_rows(self) -> int | None:
        rows = self.trainer.eval_dataset
        return None if rows is None else len(rows)

    def _show_result(self) -> None:
        path = report_run(self.run_dir)
        self.view.close()
        if self.held_out is not None:
            self.held_out.show(self.console)
        if (reliability := read_reliability(self.run_dir)) is not None:
            print_reliability(reliability, self.console)
        whole = has_weights(self.run_dir / MODEL)
        if whole:
            self._say(f"model: {self.run_dir / MODEL}\nreport: {path}")
        else:
            self._say(
                f"model: this engine saves shards, and {self.run_dir / MODEL} has no whole weights; gather them with: "
                f"posttrain export {self.run_dir} --out DIR\nreport: {path}"
            )
        if self.recipe.output.hub is not None and not whole:
            self._say(
                "hub: not pushed, since no whole weights were saved; posttrain export --push NAME does both"
            )
        elif self.recipe.output.hub is not None:
            self._say(push(self.run_dir / MODEL, self.recipe.output.hub))

    def _say(self, text: str) -> None:
        if not self.is_main:
            return
        REQUESTS.said = text
        if 1 in REQUESTS.outputs_closed:  # nobody reads stdout any more
            print(text, file=sys.stderr, flush=True)
        else:
            self.console.print(text, highlight=False, soft_wrap=True, markup=False)
