"""recipes/real/doors.py and make_log.py: every command reads, a failure is one line, what is done is not done again."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest
from rich.console import Console

from posttrain.data.feedback_logs import feedback_log
from posttrain.recipe import load_recipe


def script(root: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"real_{name}", root / "recipes" / "real" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def doors(root: Path) -> ModuleType:
    return script(root, "doors")


@pytest.fixture(scope="module")
def make_log(root: Path) -> ModuleType:
    return script(root, "make_log")


def test_every_training_command_is_a_recipe_that_reads(doors, root, monkeypatch) -> None:
    monkeypatch.chdir(root)
    found = [*doors.trainings(Path("data")), *doors.engines(Path("data"))]
    runs = {}
    for door in found:
        for command in door.commands:
            if "train" not in command:
                continue
            words = command[command.index("train") + 1 :]
            recipe = load_recipe(words[0], [word for word in words[1:] if word != "--set"])
            runs[door.name] = recipe
            assert recipe.output.name == door.run
    assert len({recipe.output.name for recipe in runs.values()}) == len(runs) >= 15
    methods = {recipe.method for recipe in runs.values()}
    assert methods == {"sft", "rpo", "kto", "salsa", "dapo", "seppo", "drift", "copo", "capo"}
    assert {recipe.rollout.engine for recipe in runs.values() if recipe.method == "dapo"} == {
        "transformers",
        "vllm",
        "vllm_server",
    }
    assert runs["sft"].train.seed != runs["sft2"].train.seed
    assert runs["salsa"].model.path == f"runs/{runs['sft'].output.name}/model"
    assert runs["salsa"].objective.others == [f"runs/{runs['sft2'].output.name}/model"]


def note(doors: ModuleType, name: str, text: str, code: int = 0) -> Any:
    """A door that adds a line to a file, prints another and ends with `code`."""
    busy = "sum(range(3_000_000))"  # a clock tick or two of the processor
    body = f"import sys; {busy}; open('done', 'a').write('{text}\\n'); print('said {text}'); sys.exit({code})"
    return doors.Door(name, f"shows {text}", ((sys.executable, "-c", body),))


def test_the_first_failure_ends_it_and_the_next_call_goes_on(doors, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    state, console = tmp_path / "state", Console(width=200)
    first, broken, last = note(doors, "a", "one"), note(doors, "b", "two", 3), note(doors, "c", "three")
    assert doors.through([first, broken, last], state, console, again=False) == 1
    assert Path("done").read_text().split() == ["one", "two"]
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("doors: b failed, ")
    assert "exit code 3: said two (all of it: " in said
    mended = note(doors, "b", "mended")
    assert doors.through([first, mended, last], state, console, again=False) == 0
    assert Path("done").read_text().split() == ["one", "two", "mended", "three"]
    stored = json.loads((state / "b.json").read_text())
    assert stored["processor_seconds"] > 0
    assert doors.through([first], state, console, again=True) == 0
    assert Path("done").read_text().split()[-1] == "one"


def test_memory_is_that_of_all_processes_together(doors, tmp_path) -> None:
    inner = "import time; held = bytearray(80 * 2**20); time.sleep(1.5)"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    both = (
        f"import subprocess, sys; a = subprocess.Popen([sys.executable, '-c', {inner!r}]); {outer}; a.wait()"
    )
    found = doors.go_through(doors.Door("m", "", ((sys.executable, "-c", both),)), tmp_path)
    assert 0.15 < found["peak_gib"] < 0.4  # two times 80 MiB, and three small interpreters


def test_figures_are_the_first_and_the_last(doors, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = Path("runs/r")
    run.mkdir(parents=True)
    rows = [
        {"event": "start"},
        {"step": 0, "eval_loss": 2.0},
        {"step": 1, "loss": 3.0},
        {"step": 2, "loss": 1.0},
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert doors.figures(doors.Door("x", "", (), run="r")) == {"loss": [3.0, 1.0], "eval_loss": [2.0, 2.0]}
    assert doors.shown([2.08041, 0.5]) == "2.08 -> 0.5"


def test_a_server_that_ends_is_said_at_once(doors, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(doors, "healthy", lambda: False)
    command = (sys.executable, "-c", "import sys; sys.exit(4)")
    with (
        (tmp_path / "log").open("w") as log,
        pytest.raises(doors.Failed, match="ended with exit code 4"),
        doors.served(command, log),
    ):
        raise AssertionError


def test_a_server_is_ended_with_what_it_started(doors, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(doors, "healthy", lambda: (tmp_path / "pid").is_file())
    child = f"import os, time; open({str(tmp_path / 'made')!r}, 'w').write(str(os.getpid())); " + (
        f"os.rename({str(tmp_path / 'made')!r}, {str(tmp_path / 'pid')!r}); time.sleep(60)"
    )
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with (tmp_path / "log").open("w") as log, doors.served((sys.executable, "-c", outer), log):
        number = int((tmp_path / "pid").read_text())
        os.kill(number, 0)
    until = time.monotonic() + 10
    while psutil.pid_exists(number) and psutil.Process(number).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until
        time.sleep(0.02)


def test_pairs_become_complaints_and_repairs(make_log) -> None:
    rows = [
        {"prompt": "a?", "chosen": "good", "rejected": "bad"},
        {"prompt": "b?", "chosen": "same", "rejected": "same"},
        {"prompt": "c?", "chosen": None, "rejected": "bad"},
        {"prompt": "d?", "chosen": "x" * 21, "rejected": "bad"},
        {"prompt": "e?", "chosen": "fine", "rejected": "poor"},
    ]
    pairs = list(make_log.usable(rows, 20))
    assert [pair["prompt"] for pair in pairs] == ["a?", "e?"]
    log = feedback_log([turn for number, pair in enumerate(pairs) for turn in make_log.turns(pair, number)])
    assert [(row.prompt[0]["content"], row.rejected, row.complaint) for row in log.complaints] == [
        ("a?", "bad", make_log.COMPLAINTS[0]),
        ("e?", "poor", make_log.COMPLAINTS[1]),
    ]
    assert [(row.chosen, row.rejected) for row in log.seeds] == [("good", "bad"), ("fine", "poor")]
