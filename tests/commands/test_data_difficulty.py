"""`posttrain data difficulty`: the rates are those of the responses that the reward saw, whatever interrupts it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from places import ROOT

from posttrain.cli import main
from posttrain.data.files import DataError, iter_rows
from posttrain.data.measured_rows import MeasuredBatch, PartFile, RowRate, check_writable
from posttrain.observe.difficulty_tables import histogram
from posttrain.process.dealt import Place, place_alone
from posttrain.trainers.policy.pass_rates import PassRates

REWARD = '''
import json


def by_kind(completions, *, prompts, kind, log, **_):
    """What the row asks for; "some" depends on the response."""
    with open(log, "a") as file:
        for prompt, completion in zip(prompts, completions):
            print(json.dumps([prompt, completion]), file=file)
    values = {"always": 1.0, "never": 0.0, "unjudged": None}
    return [
        values.get(one, float(completion[:1] < "C")) if one != "half" else 0.5
        for one, completion in zip(kind, completions)
    ]
'''
KINDS = ["always", "never", "some", "unjudged", "half", "some", "some"]
ROWS: list[dict[str, Any]] = [{"prompt": f"{i}+{i}=", "kind": kind} for i, kind in enumerate(KINDS)]
ROWS.insert(3, {"prompt": "", "kind": "always", "note": "cannot be used"})
ROWS[-1]["prompt"] = ROWS[2][
    "prompt"
]  # the first of a batch both times: only the batch's seed tells them apart
SAMPLES = 6


def write(folder: Path, **changes: Any) -> Path:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "judge.py").write_text(REWARD)
    recipe = {
        "method": "dapo",
        "model": {"scratch": {"hidden_size": 32, "layers": 1, "heads": 2, "max_positions": 64}},
        "data": {"path": "rows.jsonl"},
        "rewards": [{"name": "judge.py:by_kind", "args": {"log": str(folder / "log.jsonl")}}],
        "rollout": {"group_size": 4, "max_new_tokens": 5, "staleness": 0},
        "train": {"max_steps": 3, "per_device_train_batch_size": 64, "use_cpu": True, "beta": 0.1},
        **changes,
    }
    (folder / "r.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "r.yaml"


def run(*words: str) -> int:
    return main(["data", "difficulty", "r.yaml", "--samples", str(SAMPLES), "--batch-size", "12", *words])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where all rows were measured in one go."""
    folder = tmp_path_factory.mktemp("whole")
    write(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run() == 0
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_rates_are_those_of_the_responses_that_were_judged(whole: Path) -> None:
    seen: dict[str, list[str]] = {}
    for line in (whole / "log.jsonl").read_text().splitlines():
        prompt, completion = json.loads(line)
        seen.setdefault(prompt, []).append(completion)
    some: list[tuple[str, ...]] = []
    rows = list(iter_rows(whole / "r.difficulty.jsonl"))
    assert [{k: v for k, v in row.items() if k in ("prompt", "kind", "note")} for row in rows] == ROWS
    for row in rows:
        found = (row["pass_rate"], row["mean_reward"], row["samples"])
        responses = seen.get(row["prompt"], [])[:SAMPLES]
        seen[row["prompt"]] = seen.get(row["prompt"], [])[SAMPLES:]
        passed = sum(one[:1] < "C" for one in responses) / SAMPLES
        expected: dict[str, tuple[Any, ...]] = {
            "always": (1.0, 1.0, SAMPLES),
            "never": (0.0, 0.0, SAMPLES),
            "half": (0.0, 0.5, SAMPLES),
            "unjudged": (None, None, 0),
            "some": (passed, pytest.approx(passed, abs=1e-6), SAMPLES),
        }
        assert found == (expected[row["kind"]] if row["prompt"] else (None, None, 0))
        assert len(responses) == (SAMPLES if row["prompt"] else 0)
        # sampled as in training, not greedily as held-out prompts are
        assert len(set(responses)) > 1 or not row["prompt"]
        if row["kind"] == "some":
            some.append(tuple(responses))
    assert len(set(some)) == len(some) == 3
    assert not list(whole.glob("*.part"))


def test_interrupted_it_goes_on_to_the_same_file(
    here: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = PartFile.add
    counted: list[MeasuredBatch] = []

    def add(self: PartFile, batch: MeasuredBatch) -> None:
        if len(counted) == 2:
            raise KeyboardInterrupt
        counted.append(batch)
        plain(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(PartFile, "add", add)
        assert run() == 130
    said = capsys.readouterr().err
    assert "stopped (Ctrl-C); 4 rows are measured and kept" in said
    assert "posttrain data difficulty r.yaml --samples 6 --batch-size 12 --resume" in said
    part = here / "r.difficulty.jsonl.part"
    part.write_bytes(part.read_bytes() + b'{"rates": [{"num')  # killed while it wrote
    assert run() == 2
    assert "--resume goes on" in capsys.readouterr().err
    assert run("--resume", "--set", "rollout.temperature=0.5") == 2
    error = capsys.readouterr().err
    assert "rollout.temperature was 1.0, not 0.5" in error
    assert "go on with the old value" in error
    assert main(["data", "difficulty", "r.yaml", "--samples", "3", "--batch-size", "12", "--resume"]) == 2
    assert "samples was 6, not 3" in capsys.readouterr().err
    assert run("--resume") == 0
    assert "rows measured" in capsys.readouterr().out
    lost = 2  # rows of the batch that was sampled and not kept
    assert len((here / "log.jsonl").read_text().splitlines()) == (len(KINDS) + lost) * SAMPLES
    assert (here / "r.difficulty.jsonl").read_bytes() == (whole / "r.difficulty.jsonl").read_bytes()
    assert run("--resume") == 0
    assert "is whole" in capsys.readouterr().out
    assert run() == 2
    assert "exists; name another file" in capsys.readouterr().err


@pytest.mark.distributed
def test_several_processes_come_to_the_file_of_one(here: Path, whole: Path) -> None:
    """Each is dealt batches in turn, and its log has the responses to its own."""
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "posttrain"]
    command += ["data", "difficulty", "r.yaml", "--samples", str(SAMPLES), "--batch-size", "12"]
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, *command],
        env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("rows measured") == 1
    assert (here / "r.difficulty.jsonl").read_bytes() == (whole / "r.difficulty.jsonl").read_bytes()
    logs = [sorted((folder / "log.jsonl").read_text().splitlines()) for folder in (here, whole)]
    assert logs[0] == logs[1]
    assert not list(here.glob("*.part*"))


def test_what_several_processes_began_one_ends(
    here: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setenv("WORLD_SIZE", "2")
        patch.setattr("posttrain.run.difficulty._all_batches", interrupted)
        patch.setenv("RANK", "0")
        assert run() == 130
    assert "4 rows are measured and kept" in capsys.readouterr().err  # the first and third batch of four
    part = PartFile(here / "r.difficulty.jsonl")
    numbers = [batch.rates[0].number for batch in part.read()[1]]
    assert len(numbers) == 2
    second = PartFile(here / "r.difficulty.jsonl", 1)  # of a process that was killed before its first batch
    second.path.write_bytes(part.path.read_bytes().splitlines(keepends=True)[0])
    assert run() == 2
    assert "--resume goes on" in capsys.readouterr().err
    assert run("--resume") == 0
    assert (here / "r.difficulty.jsonl").read_bytes() == (whole / "r.difficulty.jsonl").read_bytes()
    assert (
        len((here / "log.jsonl").read_text().splitlines()) == len(KINDS) * SAMPLES
    )  # none was measured twice
    assert not list(here.glob("*.part*"))


def test_a_process_knows_its_place_and_is_alone() -> None:
    set_by_launcher = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "HOME": "/h"}
    place = place_alone(set_by_launcher)
    assert (place, set_by_launcher) == (Place(3, 4, 1), {"HOME": "/h"})
    assert [number for number in range(10) if place.takes(number)] == [3, 7]
    assert place_alone({}) == Place(0, 1, 0)
    with pytest.raises(ValueError, match="ACCELERATE_USE_FSDP"):
        place_alone({"WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "true"})


def test_what_it_found_is_said(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--out", "found.parquet", "--pass-at", "0.5") == 0
    said = capsys.readouterr().out
    facts = {line.strip().partition("  ")[0]: line.split()[-2:] for line in said.splitlines()}
    assert facts["rows measured"][-1] == "7"
    assert facts["never judged"] == ["1", "14.3%"]
    assert facts["responses"][-1] == str(7 * SAMPLES)
    assert facts["unjudged"] == [str(SAMPLES), "14.3%"]
    assert "dropped 1 (no prompt: 1)" in said
    assert "8 rows; 1 that training does not use, without a rate" in said
    rows = list(iter_rows(here / "found.parquet"))
    assert [row["pass_rate"] for row in rows if row["kind"] == "half"] == [1.0]
    assert rows[3] == {**ROWS[3], "pass_rate": None, "mean_reward": None, "samples": 0}


@pytest.mark.parametrize(
    ("changes", "words", "said"),
    [
        ({"method": "sft", "rewards": None, "rollout": None}, (), "learns from no rewards of sampled texts"),
        ({}, ("--samples", "0"), "--samples 0: at least 1"),
        ({}, ("--out", "x.csv"), "ends in .jsonl or .parquet"),
        ({}, ("--out", "no/x.jsonl"), "make it first"),
        ({"data": {"path": "rows.json"}}, (), "no file 'rows.json'"),
        ({}, ("--reward", "by_kin"), "--reward: no reward 'by_kin'; did you mean 'by_kind'?"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    here: Path, changes: dict[str, Any], words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(here, **changes)
    recipe = yaml.safe_load(Path("r.yaml").read_text())
    if recipe["method"] == "sft":
        recipe = {key: recipe[key] for key in ("method", "model", "train")}
        recipe["data"], recipe["train"] = {"path": "rows.jsonl", "completion": "kind"}, {"max_steps": 1}
    Path("r.yaml").write_text(yaml.safe_dump({k: v for k, v in recipe.items() if v is not None}))
    assert run(*words) == 2
    assert said in capsys.readouterr().err


def test_columns_that_are_there_already_are_not_lost(tmp_path: Path) -> None:
    rows = [(1, {"prompt": "a", "samples": 3})]
    with pytest.raises(DataError, match="column 'samples' already; --replace"):
        check_writable(rows, tmp_path / "x.jsonl")
    check_writable(rows, tmp_path / "x.jsonl", replace=True)
    with pytest.raises(DataError, match="row 2: column 'image' holds a bytes"):
        check_writable([(1, {"image": "a"}), (2, {"image": b"a"})], tmp_path / "x.jsonl")
    with pytest.raises(DataError, match="column 'a' cannot be written as Parquet"):
        check_writable([(1, {"a": "x"}), (2, {"a": 1})], tmp_path / "x.parquet")


def test_a_file_of_something_else_is_not_continued(tmp_path: Path) -> None:
    part = PartFile(tmp_path / "x.jsonl")
    part.path.write_text('{"prompt": "mine"}\n')
    with pytest.raises(DataError, match="holds no measured rows"):
        part.read()
    assert part.path.read_text() == '{"prompt": "mine"}\n'


def rate(rewards: list[float], pass_at: float = 1.0) -> RowRate:
    judge = PassRates.__new__(PassRates)
    judge.pass_at = pass_at
    return judge._rate(1, rewards)


def test_a_pass_by_hand() -> None:
    nan = float("nan")
    assert rate([1.0, 0.0, nan, 1.0]) == RowRate(1, 2 / 3, 0.666667, 3)
    assert rate([nan, nan]) == RowRate(1, None, None, 0)
    assert rate([0.5, 0.25, 1.0], pass_at=0.5) == RowRate(1, 2 / 3, 0.583333, 3)
    # weights of .7, .2 and .1 sum to .99999994 in float32
    total = sum((torch.tensor(w) for w in (0.7, 0.2, 0.1)), torch.tensor(0.0)).item()
    assert rate([total, 0.9999]) == RowRate(1, 0.5, 0.99995, 2)


def test_a_histogram_by_hand() -> None:
    rates = [0.0, 0.0, 1 / 8, 0.1, 0.3, 7 / 10, 0.95, 15 / 16, 1.0]
    found = dict(histogram(rates))
    assert found == {
        "0": 2, "to 0.1": 1, "to 0.2": 1, "to 0.3": 1, "to 0.4": 0, "to 0.5": 0, "to 0.6": 0, "to 0.7": 1,
        "to 0.8": 0, "to 0.9": 0, "below 1": 2, "1": 1,
    }  # fmt: skip
