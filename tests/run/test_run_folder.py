"""Where a run may begin, what it continues and what an overwrite may delete; who holds it."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from small_recipe import POLICY, Load, Refused

from posttrain.observe.writer import RunWriter
from posttrain.recipe import RecipeError
from posttrain.run import lock as run_lock
from posttrain.run.lock import RunInUse, owned
from posttrain.run.run_folder import holds_run, how_to_go_on, last_checkpoint, opened, replaced, step_of


def a_run(folder: Path, steps: tuple[int, ...] = (), of: int = 8, processes: int = 1) -> Path:
    """A run's folder as far as this room looks at it."""
    RunWriter(folder).write_environment(seed=0, world_size=processes)
    for step in steps:
        checkpoint = folder / "checkpoints" / f"checkpoint-{step}"
        checkpoint.mkdir(parents=True)
        state = {"global_step": step, "max_steps": of, "num_train_epochs": 1}
        (checkpoint / "trainer_state.json").write_text(json.dumps(state))
        for rank in range(processes):
            (checkpoint / f"rollout_state_{rank}.pt").touch()
    return folder


@pytest.fixture
def recipe(load: Load) -> Any:
    return load(POLICY, output={"name": "own"})


def refusal(recipe: Any, resume: str | None = None) -> str:
    with pytest.raises(RecipeError) as raised, opened(recipe, resume):
        pass
    return str(raised.value)


# ------------------------------------------------------------------------------------------------------ names


@pytest.mark.parametrize(
    "name",
    [
        "../precious",
        ".",
        "..",
        "/abs",
        "a/../../b",
        "a/..",
        "a//b",
        "a/",
        ".hidden",
        "a\\b",
        "  ",
        " a",
        "a\nb",
        "x" * 300,
    ],
)
def test_a_name_stays_below_its_folder(name: str, refused: Refused) -> None:
    (line,) = refused(output={"name": name})
    assert line.startswith("r.yaml: output: 'name'")
    assert line.endswith(
        "leave" if len(name) > 200 else ("a plain name" if "leaves" not in line else "in 'dir'")
    )


@pytest.mark.parametrize("name", ["own", "group/one", "qwen2.5-1.5b", "läuft", "a b"])
def test_ordinary_names_are_taken(name: str, load: Load) -> None:
    assert load(output={"name": name}).output.run_dir == f"runs/{name}"


def test_an_empty_folder_is_not_the_root(refused: Refused) -> None:
    assert "'dir' must be text that is not empty" in refused(output={"dir": ""})[0]


# -------------------------------------------------------------------------------------------- fresh, overwrite


def test_overwrite_replaces_runs_and_nothing_else(recipe: Any, load: Load) -> None:
    folder = Path("runs/own")
    folder.mkdir(parents=True)
    (folder / "thesis.tex").touch()
    over = load(POLICY, output={"name": "own", "overwrite": True})
    assert "already holds files" in refusal(recipe)
    assert "overwrite=true replaces" not in refusal(recipe)
    assert "holds no run of posttrain" in refusal(over)
    for theirs in ("recipe.yaml", "metrics.jsonl", "checkpoints"):  # a name of ours does not make it one
        (folder / theirs).touch()
        assert "holds no run of posttrain" in refusal(over)
    (folder / "thesis.tex").unlink()
    (folder / "checkpoints").unlink()
    a_run(folder)
    with opened(over):
        pass
    assert "--set output.overwrite=true replaces it" in refusal(recipe)
    (folder / "notes.txt").touch()  # a run of ours with somebody's notes in it
    assert holds_run(folder)


def test_a_folder_that_a_kill_left_half_made_is_a_run(tmp_path: Path) -> None:
    RunWriter(tmp_path / "run")
    assert holds_run(tmp_path / "run")
    (tmp_path / "run" / "recipe.yaml.tmp").touch()
    assert holds_run(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    assert not holds_run(tmp_path / "empty")


def test_a_run_does_not_begin_within_another(load: Load) -> None:
    a_run(Path("runs/own"))
    assert "would lie within the run runs/own" in refusal(load(POLICY, output={"name": "own/checkpoints/x"}))


def test_an_interrupted_overwrite_gives_the_old_run_back(recipe: Any, load: Load) -> None:
    over = load(POLICY, output={"name": "own", "overwrite": True})
    a_run(Path("runs/own"), steps=(2,))
    killed = f"""
import os
from posttrain.recipe import load_recipe
from posttrain.run.run_folder import opened, replaced
with opened(load_recipe("r.yaml")) as start, replaced(start.run_dir):
    (start.run_dir / "checkpoints").mkdir(parents=True)
    os.kill(os.getpid(), {int(signal.SIGKILL)})
"""
    assert subprocess.run([sys.executable, "-c", killed]).returncode == -signal.SIGKILL
    assert sorted(os.listdir("runs")) == [".own.lock", ".own.replaced", "own"]
    recipe = load(POLICY, output={"name": "own"})
    assert "--resume continues it" in refusal(recipe)
    assert os.listdir("runs") == ["own"]
    assert last_checkpoint(Path("runs/own")) == Path("runs/own/checkpoints/checkpoint-2")
    with opened(over) as start, replaced(start.run_dir):
        a_run(start.run_dir)
    assert os.listdir("runs") == ["own"]
    assert last_checkpoint(Path("runs/own")) is None


def test_a_checkpoint_about_to_give_way_stands_again(recipe: Any) -> None:
    run = a_run(Path("runs/own"), steps=(2, 4))
    (run / "checkpoints" / "checkpoint-4").rename(run / "checkpoints" / "checkpoint-4.old")
    with opened(recipe, "last") as start:
        assert start.checkpoint == "runs/own/checkpoints/checkpoint-4"


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/proc/sys/fs").exists(), reason="needs a Linux /proc")
def test_a_folder_that_cannot_be_written_is_refused_first(load: Load) -> None:
    line = refusal(
        load(POLICY, output={"name": "own", "dir": "/proc/sys/fs"})
    )  # not even root may write there
    assert line.startswith("r.yaml: output: /proc/sys/fs/.own.lock cannot be written: ")
    assert "\n" not in line


def test_a_folder_behind_a_file_is_refused(load: Load) -> None:
    Path("runs").write_text("")
    assert "cannot be written" in refusal(load(POLICY, output={"name": "own"}))


# ----------------------------------------------------------------------------------------------------- resume


def test_where_nothing_was_saved_both_ways_say_the_same(recipe: Any) -> None:
    assert "there is no run in runs/own; start it without --resume" in refusal(recipe, "last")
    assert how_to_go_on(recipe).startswith("nothing was saved yet; start again with: posttrain train r.yaml")
    a_run(Path("runs/own"))
    assert "before it had saved a checkpoint; start it again with --set output.overwrite=true" in refusal(
        recipe, "last"
    )
    without = refusal(recipe)
    assert "already holds a run that has saved no checkpoint" in without
    assert "--resume" not in without
    assert "--set output.overwrite=true replaces it" in without
    assert how_to_go_on(recipe).endswith("--set output.overwrite=true")
    a_run(Path("runs/own"), steps=(2,))
    assert "--resume continues it" in refusal(recipe)
    assert how_to_go_on(recipe) == "continue from step 2 with: posttrain train r.yaml --resume"


def test_a_named_checkpoint_must_be_one(recipe: Any) -> None:
    a_run(Path("runs/own"), steps=(2, 10))
    assert last_checkpoint(Path("runs/own")) == Path("runs/own/checkpoints/checkpoint-10")
    assert "no folder runs/own/checkpoints/checkpoint-3" in refusal(
        recipe, "runs/own/checkpoints/checkpoint-3"
    )
    assert "is no checkpoint" in refusal(recipe, "runs/own")
    a_run(Path("runs/other"), steps=(4,))
    assert "is of another run" in refusal(recipe, "runs/other/checkpoints/checkpoint-4")
    with opened(recipe, "runs/own/checkpoints/checkpoint-2") as start:
        assert not start.finished


@pytest.mark.parametrize("before", [2, 4])
def test_another_number_of_processes_is_refused(
    before: int, recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_run(Path("runs/own"), steps=(2,), processes=before)
    assert f"was written by {before} processes, now there is 1" in refusal(recipe, "last")
    monkeypatch.setenv("WORLD_SIZE", str(before))
    with opened(recipe, "last"):
        pass


def test_another_engine_is_refused(recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = a_run(Path("runs/own"), steps=(2,), processes=2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    with opened(recipe, "last"):  # an earlier version did not note the engine
        pass
    RunWriter(run).write_environment(world_size=2, engine="zero2")
    with opened(recipe, "last"):
        pass
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")
    assert "was written under zero2, now zero3 was started" in refusal(recipe, "last")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "false")
    assert "now ddp was started" in refusal(recipe, "last")
    assert "posttrain export runs/own --out DIR" in refusal(recipe, "last")


def test_the_model_of_an_earlier_end_does_not_finish_a_longer_run(load: Load) -> None:
    run = a_run(Path("runs/own"), steps=(3, 6))
    (run / "model").mkdir()
    RunWriter(run).event("model", step=3)
    recipe = load(POLICY, output={"name": "own"}, train={"max_steps": 6})
    with opened(recipe, "last") as start:
        assert start.finished
        assert not start.model_saved
    RunWriter(run).event("model", step=6)
    with opened(recipe, "last") as start:
        assert start.model_saved


def test_steps_of_a_run_in_stages_are_summed(tmp_path: Path) -> None:
    for stage, steps in enumerate((5, 7)):
        (tmp_path / "stages" / f"00{stage}").mkdir(parents=True)
        (tmp_path / "stages" / f"00{stage}" / "done.json").write_text(json.dumps({"steps": steps}))
    running = tmp_path / "stages" / "002" / "train" / "checkpoint-3"
    running.mkdir(parents=True)
    (running / "trainer_state.json").write_text(json.dumps({"global_step": 3}))
    (tmp_path / "run.json").write_text("{}")
    assert step_of(tmp_path) == 15


# ------------------------------------------------------------------------------------------------------- lock

HOLD = """
import sys, time
from pathlib import Path
from posttrain.run.lock import owned
with owned(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    run = tmp_path / "runs" / "own"
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(run)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize("resume", [None, "last"])
def test_a_run_in_use_says_by_whom(resume: str | None, holder: subprocess.Popen[str], load: Load) -> None:
    for overwrite in (False, True):
        line = refusal(load(POLICY, output={"name": "own", "overwrite": overwrite}), resume)
        assert f"runs/own is in use by process {holder.pid} on " in line
        assert ", started 20" in line
        assert "\n" not in line


def test_a_lock_ends_with_its_process_however_that_ended(
    holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "own"
    with pytest.raises(RunInUse), owned(run):
        pass
    holder.kill()
    holder.wait()
    assert run_lock.lock_file(run).exists()  # the dead process's words
    with owned(run):
        assert json.loads(run_lock.lock_file(run).read_text())["pid"] == os.getpid()
    assert not run_lock.lock_file(run).exists()


def test_a_forked_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(30,))
    with owned(tmp_path / "own"):
        child.start()
    try:
        took = subprocess.run(
            [sys.executable, "-c", HOLD.replace("time.sleep(60)", "pass"), str(tmp_path / "own")],
            capture_output=True,
        )
        assert took.stdout == b"held\n", took.stderr
    finally:
        child.kill()
        child.join()


def test_where_there_are_no_locks_the_words_decide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: Any) -> None:
        raise OSError(run_lock.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(run_lock.fcntl, "lockf", none)
    run, file = tmp_path / "own", tmp_path / ".own.lock"
    alive = {
        "pid": os.getppid(),
        "host": run_lock.socket.gethostname(),
        "began": run_lock._began(os.getppid()),
    }
    for words, free in (
        (alive, False),
        (alive | {"began": "1"}, True),  # the number is another process's by now
        (alive | {"host": "elsewhere"}, False),
        ({"pid": 2**22 + 1, "host": alive["host"], "began": "1"}, True),
    ):
        file.write_text(json.dumps(words))
        if free:
            with owned(run):
                pass
        else:
            with pytest.raises(RunInUse, match=r"if that is gone, remove .*\.own\.lock"), owned(run):
                pass


def test_other_ranks_leave_the_folder_to_the_first(
    holder: subprocess.Popen[str], load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    with opened(load(POLICY, output={"name": "own"})) as start:
        assert start.checkpoint is None
