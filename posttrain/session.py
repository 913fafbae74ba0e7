"""Around a trainer's run: the run folder, the live view, the held-out measurement before and after, the report."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain import exit_codes
from posttrain.commands.report import report_run
from posttrain.hub import push
from posttrain.observe.model_card import write_card
from posttrain.observe.phases import PHASES
from posttrain.observe.progress import ProgressView
from posttrain.observe.writer import RunWriter, read_environment
from posttrain.planning.continuing import Compared
from posttrain.recipe import Recipe, RecipeError
from posttrain.run_folder import MODEL, how_to_go_on
from posttrain.stop_requests import REQUESTS
from posttrain.trainers.benchmarks import AtCheckpoints
from posttrain.trainers.callbacks import HeldOut, RunCallback, attach
from posttrain.trainers.launch_check import check_engine
from posttrain.trainers.resume import publish, rows_fingerprint, saving
from posttrain.trainers.scoring import Rollout
from posttrain.trainers.stopping import StopOnSignal

_ASIDE = ".model.saving"


class Session:
    """`begin`, then the trainer's own `train`, then `end`. Only rank 0 writes and prints."""

    def __init__(self, recipe: Recipe, trainer: Any, run_dir: Path, view: ProgressView) -> None:
        check_engine(trainer.accelerator)
        self.recipe = recipe
        self.trainer = trainer
        self.run_dir = run_dir
        self.is_main = trainer.accelerator.is_main_process
        self.view = view
        self.console = view.console
        self.held_out: HeldOut | None = None
        self.stop = StopOnSignal()

    def begin(self, compared: Compared | None = None) -> None:
        """Opens the run folder and hands the trainer its callbacks.

        compared  of a run that is resumed: what its recipe changes
        """
        trainer, recipe = self.trainer, self.recipe
        writer = RunWriter(self.run_dir) if self.is_main else None
        if writer is not None:
            self._open_folder(writer, compared)
        resumed = compared is not None
        REQUESTS.last_words = self._last_words
        attach(
            trainer,
            RunCallback(
                writer,
                self.view,
                completions=self._rollout_columns if recipe.output.log_completions else None,
            ),
        )
        trainer.add_callback(self.stop)
        if recipe.evaluation is not None:
            trainer.add_callback(AtCheckpoints(trainer, recipe.evaluation, self.run_dir, writer, self.view))
        if trainer.eval_dataset is not None:
            self.held_out = HeldOut(writer, self._held_out_columns)
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
            seed=self.recipe.train.seed, world_size=self.trainer.accelerator.num_processes, rows=rows
        )
        if self.trainer.row_counts is not None:
            self.console.print(f"data: {self.trainer.row_counts.in_words()}")

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
        self._say(f"model: {self.run_dir / MODEL}\nreport: {path}")
        if self.recipe.output.hub is not None:
            self._say(push(self.run_dir / MODEL, self.recipe.output.hub))

    def _say(self, text: str) -> None:
        if not self.is_main:
            return
        REQUESTS.said = text
        if 1 in REQUESTS.outputs_closed:  # nobody reads stdout any more
            print(text, file=sys.stderr, flush=True)
        else:
            self.console.print(text, highlight=False, soft_wrap=True, markup=False)

    # What the run folder keeps of a rollout

    def _rollout_columns(self) -> Mapping[str, Sequence[Any]] | None:
        rollout = vars(self.trainer).get("rollout")  # families without a rollout have none
        return None if rollout is None else rollout_columns([rollout], self.trainer)

    def _held_out_columns(self) -> Mapping[str, Sequence[Any]] | None:
        rollouts = vars(self.trainer).get("held_out")
        return rollout_columns(rollouts, self.trainer) if rollouts else None


def rollout_columns(rollouts: Sequence[Rollout], trainer: Any) -> dict[str, list[Any]]:
    """One row a response, in the columns `RunWriter.write_completions` knows."""
    names = trainer.reward_func_names
    weights = trainer.reward_weights.tolist()
    end_tokens = set(trainer.eos_token_ids)
    columns: dict[str, list[Any]] = {}

    def add(name: str, values: Sequence[Any]) -> None:
        columns.setdefault(name, []).extend(values)

    for rollout in rollouts:
        per_function = [[None if v != v else v for v in row] for row in rollout.rewards_per_function.tolist()]
        add("prompt", rollout.prompts)
        add("completion", rollout.completions)
        add("reward", [_weighted(row, weights) for row in per_function])
        for k, name in enumerate(names):
            add(f"rewards/{name}", [row[k] for row in per_function])
        add("advantage", rollout.advantages or [None] * len(per_function))
        if rollout.weight_versions is not None:
            add("weight_version", rollout.weight_versions)
        gold = rollout.columns.get("answer")
        add("answer", gold if gold is not None else [None] * len(per_function))
        add("tokens", [len(ids) for ids in rollout.completion_ids])
        add("truncated", [not ids or ids[-1] not in end_tokens for ids in rollout.completion_ids])
        for name in {name: None for one in rollouts for name in one.extra}:  # what rewards logged
            add(f"extra/{name}", rollout.extra.get(name, [None] * len(per_function)))
    columns["correct"] = _correct(columns[f"rewards/{names[0]}"])
    return {name: _one_kind(v) if name.startswith("extra/") else v for name, v in columns.items()}


def _correct(first: Sequence[float | None]) -> list[bool | None]:
    """Whether the first reward calls a response right; None where it did not judge, and of all where it gives grades
    between right and wrong."""
    graded = any(value not in (None, 0.0, 1.0) for value in first)
    return [None if graded or value is None else value == 1.0 for value in first]


def _one_kind(values: list[Any]) -> list[Any]:
    """A column of a table: numbers, or text, or, where a reward logged both, all as text."""
    present = [value for value in values if value is not None]
    if all(isinstance(value, int | float) for value in present):
        return values
    return [None if value is None else str(value) for value in values]


def _weighted(row: Sequence[float | None], weights: Sequence[float]) -> float | None:
    judged = [value * weight for value, weight in zip(row, weights, strict=True) if value is not None]
    return sum(judged) if judged else None
