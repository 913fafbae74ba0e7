"""What a session looks at before it writes a line, and what the command says of the ways a run can end."""

from __future__ import annotations

import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset
from safetensors import SafetensorError

from posttrain.commands.train import _fault
from posttrain.observe.progress import ProgressView
from posttrain.observe.writer import RunWriter, read_environment
from posttrain.process import exit_codes
from posttrain.process.storage import StorageError, storage_fault
from posttrain.recipe import RecipeError, load_recipe
from posttrain.rewards.runner import RewardError
from posttrain.rollout.base import EngineError
from posttrain.run.continuing import Compared
from posttrain.run.session import Session
from posttrain.trainers.seam.faults import NotFinite, NotUnderThisEngine

RECIPE = """
method: sft
model: {scratch: {}}
data: {name: sort}
train: {max_steps: 3}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Any:
    (tmp_path / "r.yaml").write_text(RECIPE)
    return load_recipe(tmp_path / "r.yaml")


def session(recipe: Any, folder: Path, rows: list[str]) -> Session:
    data = Dataset.from_list([{"prompt": row} for row in rows])
    ranks = SimpleNamespace(is_main_process=True, num_processes=1)
    trainer = SimpleNamespace(accelerator=ranks, train_dataset=data, row_counts=None)
    return Session(recipe, trainer, folder, ProgressView("r", enabled=False))


def test_rows_that_changed_in_their_file_are_noticed(recipe: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    session(recipe, run, ["a", "b"])._open_folder(RunWriter(run), None)
    before = (run / "recipe.yaml").stat().st_mtime_ns, read_environment(run)
    for rows in (["a"], ["b", "a"], ["a", "c"]):
        with pytest.raises(RecipeError, match="--resume: the training rows are not those the run began with"):
            session(recipe, run, rows)._open_folder(RunWriter(run), Compared(2))
    assert ((run / "recipe.yaml").stat().st_mtime_ns, read_environment(run)) == before  # nothing was written
    session(recipe, run, ["a", "b"])._open_folder(RunWriter(run), Compared(2))
    assert len(read_environment(run)["earlier"]) == 1


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (EngineError("lost"), exit_codes.ENGINE_LOST),
        (RewardError("failed"), exit_codes.REWARD_FAILED),
        (NotFinite("nan"), exit_codes.NOT_FINITE),
        (NotUnderThisEngine("no process holds the weights"), exit_codes.REFUSED),
        (StorageError("full"), exit_codes.NOT_WRITTEN),
        (OSError(errno.ENOSPC, "No space left on device"), exit_codes.NOT_WRITTEN),
        (SafetensorError("I/O error: No space left on device (os error 28)"), exit_codes.NOT_WRITTEN),
        (
            RuntimeError("[../gloo/transport/tcp/pair.cc:537] Connection closed by peer"),
            exit_codes.PROCESS_LOST,
        ),
        (PermissionError(errno.EACCES, "Permission denied", "data.csv"), exit_codes.UNEXPECTED),
        (RuntimeError("Connection closed by peer"), exit_codes.UNEXPECTED),
        (KeyError("clip_hi"), exit_codes.UNEXPECTED),
    ],
)
def test_each_end_has_its_code(
    error: Exception, code: int, recipe: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    found, line = _fault(error, recipe)
    assert found == code
    assert bool(line) == (code != exit_codes.UNEXPECTED)


def test_a_fault_of_storage_is_found_behind_another_error() -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    behind = ValueError("could not save")
    behind.__cause__ = full
    assert storage_fault(behind) == "No space left on device"
    refused = PermissionError(errno.EACCES, "Permission denied")
    assert storage_fault(refused) is None
    assert storage_fault(refused, writing=True) == "Permission denied"
