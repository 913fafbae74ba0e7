"""The folder of a run from outside: whether it may begin here, what a resume continues, what an overwrite replaces.

No torch: all of this is known, and refused, before a model is loaded. Beside `runs/NAME` lie, while they are needed,
`.NAME.lock` (run_lock.py) and `.NAME.replaced`, the old run that an overwrite set aside until the new one stands.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from posttrain.observe.writer import (
    COMPLETIONS,
    ENVIRONMENT,
    EVALUATION,
    METRICS,
    RECIPE,
    RECIPE_CHANGES,
    read_events,
)
from posttrain.planning.launcher import engine_asked, started
from posttrain.recipe import Recipe, RecipeError
from posttrain.run.continuing import Compared, compare
from posttrain.run.lock import RunInUse, owned

CHECKPOINTS = "checkpoints"
MODEL = "model"
REPORT = "report.html"
STAGED = "run.json"
AUTO = "auto"
"""`--resume auto`, for a job that may be started more than once."""
_OURS = {
    *(RECIPE, RECIPE_CHANGES, ENVIRONMENT, METRICS, COMPLETIONS, EVALUATION, CHECKPOINTS, MODEL, REPORT),
    *("benchmarks", "records", "tensorboard"),
}
_ASIDE_WAIT_S = 60.0


@dataclass(frozen=True)
class Opened:
    """A run that may begin: from `checkpoint`, or fresh. `finished`: no step is left."""

    run_dir: Path
    checkpoint: str | None = None
    compared: Compared | None = None
    finished: bool = False

    @property
    def ended(self) -> bool:
        """Whether nothing is left to do."""
        return self.finished and self.model_saved

    @property
    def model_saved(self) -> bool:
        """Whether `model/` is of the run's last step."""
        if not (self.run_dir / MODEL).is_dir():
            return False
        saved = [event["step"] for event in read_events(self.run_dir) if event["event"] == "model"]
        # Runs of earlier versions have no such line; they saved a model at their end and nowhere else.
        return not saved or self.compared is None or saved[-1] >= self.compared.step


@contextmanager
def opened(recipe: Recipe, resume: str | None = None) -> Iterator[Opened]:
    """The run is this process's within. RecipeError says why it may not begin; nothing is loaded or changed then.

    resume  a checkpoint folder, or "last"; None: a fresh run
    """
    run_dir = Path(recipe.output.run_dir)
    if int(os.environ.get("RANK", "0")) != 0:  # the first process looks after the folder for all
        yield _look(recipe, run_dir, resume)
        return
    with ExitStack() as held:
        try:
            held.enter_context(owned(run_dir))
            bring_back(run_dir)
            found = _look(recipe, run_dir, resume)
            _try_to_write(run_dir)
        except RunInUse as error:
            raise RecipeError(
                f"{recipe.path}: output: {run_dir} is in use by {error}; wait for it, stop it, or give this run "
                "another name: --set output.name=NAME"
            ) from None
        except OSError as error:
            raise RecipeError(
                f"{recipe.path}: output: {error.filename or run_dir} cannot be written: {error.strerror or error}; "
                "make room, or change output.dir"
            ) from None
        yield found


def _look(recipe: Recipe, run_dir: Path, resume: str | None) -> Opened:
    if resume is not None:
        if int(os.environ.get("RANK", "0")) != 0:
            _wait_for_first(run_dir)
        checkpoint = _checkpoint(recipe, run_dir, resume)
        folder = Path(checkpoint)
        step = step_of(folder)
        _check_processes(recipe, run_dir, folder)
        # A checkpoint of another run brings the recipe of that run.
        home = folder.parent if is_staged(folder) else folder.parent.parent
        _check_engine(recipe, home, folder)
        if home.resolve() != run_dir.resolve() and run_dir.is_dir() and any(run_dir.iterdir()):
            raise RecipeError(
                f"{recipe.path}: --resume: {folder} is of another run than {run_dir}, which holds one already; go on "
                "from it under a new name: --set output.name=NAME"
            )
        compared = compare(recipe, home, step, started())
        return Opened(run_dir, checkpoint, compared, has_no_step_left(recipe, folder))
    _check_fresh(recipe, run_dir)
    return Opened(run_dir)


# Fresh


def _check_fresh(recipe: Recipe, run_dir: Path) -> None:
    if run_dir.exists() and not run_dir.is_dir():
        raise RecipeError(f"{recipe.path}: output: {run_dir} is a file; give the run another output.name")
    above = next((parent for parent in run_dir.parents if holds_run(parent)), None)
    if above is not None:
        raise RecipeError(
            f"{recipe.path}: output: {run_dir} would lie within the run {above}; name it otherwise"
        )
    if not run_dir.exists() or not any(run_dir.iterdir()):
        return
    if not recipe.output.overwrite:
        goes_on = "--resume continues it, " if last_checkpoint(run_dir) is not None else ""
        without = "" if goes_on else " that has saved no checkpoint"
        raise RecipeError(
            f"{recipe.path}: output: {run_dir} already holds {_what(run_dir)}{without}; {goes_on}"
            + ("--set output.overwrite=true replaces it, " if holds_run(run_dir) else "")
            + "--set output.name=NAME starts beside it"
        )
    if not holds_run(run_dir):
        raise RecipeError(
            f"{recipe.path}: output: {run_dir} holds no run of posttrain, so output.overwrite does not replace it; "
            "give the run another output.name, or move the folder away"
        )


def place_faults(recipe: Recipe) -> Iterator[str]:
    """Why the run's folder cannot be made where the recipe says, as far as looking tells."""
    run_dir = Path(recipe.output.run_dir)
    above = next(folder for folder in (run_dir, *run_dir.absolute().parents) if folder.exists())
    if not above.is_dir():
        yield f"output: {above} is a file, so {run_dir} cannot be a folder in it; change output.dir or output.name"
    elif not os.access(above, os.W_OK | os.X_OK):
        yield f"output: {above} cannot be written; change output.dir"


def _what(run_dir: Path) -> str:
    return "a run" if holds_run(run_dir) else "files"


def holds_run(folder: Path) -> bool:
    """Whether the folder is a run of ours, by its files; one that a kill left half made is one too."""
    if not folder.is_dir():
        return False
    names = {entry.name for entry in folder.iterdir()}
    if ENVIRONMENT in names and _json(folder / ENVIRONMENT).get("versions", {}).keys() >= {"posttrain"}:
        return True
    plain = {name.removesuffix(".tmp") for name in names if not name.startswith(".")}
    begun = {ENVIRONMENT, METRICS, CHECKPOINTS, COMPLETIONS}
    return bool(plain & begun) and plain <= _OURS


def _try_to_write(run_dir: Path) -> None:
    """A file in each folder that will be written, before anything is loaded."""
    for folder in (run_dir, run_dir / CHECKPOINTS):
        if not folder.is_dir():
            continue
        probe = folder / ".probe"
        try:
            probe.write_bytes(b"0" * 4096)
        finally:
            with suppress(OSError):
                probe.unlink(missing_ok=True)


def aside_of(run_dir: Path) -> Path:
    return run_dir.with_name(f".{run_dir.name}.replaced")


@contextmanager
def replaced(run_dir: Path) -> Iterator[None]:
    """Takes an old run away once what is done within has not failed; else it is there again as before."""
    if int(os.environ.get("RANK", "0")) != 0 or not run_dir.exists():
        yield
        return
    aside = aside_of(run_dir)
    run_dir.rename(aside)
    try:
        yield
    except BaseException:
        bring_back(run_dir)
        raise
    # Renamed first: while it bears the other name, an interrupted start brings it back.
    gone = run_dir.with_name(f".{run_dir.name}.deleted")
    aside.rename(gone)
    _remove(gone)


def bring_back(run_dir: Path) -> None:
    """What an overwrite that was interrupted set aside is the run again; what it had begun goes.

    Within the run: a checkpoint or a model that was about to give way to a newer one of its name stands again.
    """
    _remove(run_dir.with_name(f".{run_dir.name}.deleted"))
    aside = aside_of(run_dir)
    if aside.exists():
        _remove(run_dir)
        aside.rename(run_dir)
    for old in list(_half_published(run_dir)):
        old.rename(old.with_suffix(""))


def _remove(folder: Path) -> None:
    if folder.is_symlink():
        folder.unlink()  # what it points at is not ours to delete
    elif folder.exists():
        shutil.rmtree(folder)


def _wait_for_first(run_dir: Path) -> None:
    """Another rank looks once the first has brought back what it must."""
    until = time.monotonic() + _ASIDE_WAIT_S
    while (aside_of(run_dir).exists() or any(_half_published(run_dir))) and time.monotonic() < until:
        time.sleep(0.1)


def _half_published(run_dir: Path) -> Iterator[Path]:
    """Checkpoints and models that were set aside for one of their name, which is not there."""
    for old in (*run_dir.glob(f"{CHECKPOINTS}/checkpoint-*.old"), *run_dir.glob(f"{MODEL}.old")):
        if not old.with_suffix("").exists():
            yield old


# Resume


def _checkpoint(recipe: Recipe, run_dir: Path, resume: str) -> str:
    found = last_checkpoint(run_dir) if resume == "last" else Path(resume)
    if found is not None and found.is_dir():
        if not (found / "trainer_state.json").is_file() and not is_staged(found):
            raise RecipeError(
                f"{recipe.path}: --resume: {found} is no checkpoint: it holds no trainer_state.json; give a folder "
                f"{CHECKPOINTS}/checkpoint-N, or --resume alone for the last one"
            )
        return str(found)
    if found is not None:
        raise RecipeError(
            f"{recipe.path}: --resume: there is no folder {found}; --resume alone takes the last one"
        )
    if not run_dir.is_dir() or not any(run_dir.iterdir()):
        raise RecipeError(
            f"{recipe.path}: --resume: there is no run in {run_dir}; start it without --resume, or name the run "
            "that was meant: --set output.name=NAME"
        )
    raise RecipeError(
        f"{recipe.path}: --resume: {run_dir} was stopped before it had saved a checkpoint; start it again with "
        "--set output.overwrite=true"
    )


def last_checkpoint(run_dir: Path) -> Path | None:
    """The newest whole checkpoint; a run in stages is continued as a whole, by its folder."""
    folder = run_dir / CHECKPOINTS
    if is_staged(folder):
        return folder
    if not folder.is_dir():
        return None
    steps = [int(m[1]) for entry in folder.iterdir() if (m := re.fullmatch(r"checkpoint-(\d+)", entry.name))]
    return folder / f"checkpoint-{max(steps)}" if steps else None


def resume_of(recipe: Recipe) -> tuple[str | None, list[str]]:
    """What `--resume auto` means now: (checkpoint to resume, overrides). The last one where there is one; a run that
    was stopped before its first is replaced; whatever else lies in the folder is refused as ever."""
    run_dir = Path(recipe.output.run_dir)
    if last_checkpoint(run_dir) is not None:
        return "last", []
    return None, ["output.overwrite=true"] if holds_run(run_dir) and not recipe.output.overwrite else []


def is_staged(folder: Path) -> bool:
    return (folder / STAGED).is_file()


def step_of(checkpoint: Path) -> int:
    """Optimizer steps behind the checkpoint; of a run in stages, those of all its stages."""
    if not is_staged(checkpoint):
        return int(_json(checkpoint / "trainer_state.json").get("global_step", 0))
    done = [_json(file).get("steps", 0) for file in checkpoint.glob("stages/*/done.json")]
    running = [
        _json(file).get("global_step", 0)
        for file in checkpoint.glob("stages/*/train/checkpoint-*/trainer_state.json")
        if not (file.parents[2] / "done.json").exists()
    ]
    return sum(done) + max(running, default=0)


def has_no_step_left(recipe: Recipe, checkpoint: Path) -> bool:
    """Whether the checkpoint is of the run's last step. transformers, asked to go on from there, trains one step more.

    A run in stages looks after its own.
    """
    path = checkpoint / "trainer_state.json"
    if not path.is_file():
        return False
    state = _json(path)
    wanted = recipe.train.max_steps
    if wanted is None and state["num_train_epochs"] >= (recipe.train.num_train_epochs or 0):
        wanted = state["max_steps"]
    return wanted is not None and state["global_step"] >= wanted


def _check_processes(recipe: Recipe, run_dir: Path, checkpoint: Path) -> None:
    """Rows, random states and rollouts are shared out over the processes that wrote the checkpoint."""
    if is_staged(checkpoint):
        before = int(_json(checkpoint.parent / ENVIRONMENT).get("world_size", 0))
    else:
        before = len(list(checkpoint.glob("rollout_state_*.pt")))
    if before and before != started():
        raise RecipeError(
            f"{recipe.path}: --resume: {checkpoint} was written by {before} process{'es' if before > 1 else ''}, now "
            f"there {'are' if started() > 1 else 'is'} {started()}; start as many as before "
            f"(torchrun --nproc_per_node {before}, or accelerate launch --num_processes {before})"
        )


def _check_engine(recipe: Recipe, run_dir: Path, checkpoint: Path) -> None:
    """Weights and moments lie in the checkpoint as the engine that wrote it shares them out."""
    before, now = _json(run_dir / ENVIRONMENT).get("engine"), engine_asked()
    if before not in (None, now):
        raise RecipeError(
            f"{recipe.path}: --resume: {checkpoint} was written under {before}, now {now} was started; the optimizer's "
            f"state lies there as {before} keeps it. Start it as before, or train on from its weights alone: "
            f"posttrain export {run_dir} --out DIR, then a new run with --set model.path=DIR"
        )


def how_to_go_on(recipe: Recipe, *, same_launcher: bool = False) -> str:
    """What a person types after a run that did not end: by what it has saved."""
    run_dir = Path(recipe.output.run_dir)
    launcher = "the same launcher and " if same_launcher else ""
    last = last_checkpoint(run_dir)
    if last is not None:
        return f"continue from step {step_of(last)} with: {launcher}{recipe.train_command} --resume"
    again = "" if not run_dir.is_dir() or not any(run_dir.iterdir()) else " --set output.overwrite=true"
    return f"nothing was saved yet; start again with: {launcher}{recipe.train_command}{again}"


def _json(path: Path) -> dict:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
