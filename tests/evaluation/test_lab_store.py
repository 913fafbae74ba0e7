"""The lab's store: what is put in comes out, again and again in the same bytes."""

from __future__ import annotations

import importlib.util
import json
import threading
from pathlib import Path

import pytest

STORE = Path(__file__).resolve().parents[2] / "eval" / "stability" / "store.py"


@pytest.fixture(scope="module")
def store():
    spec = importlib.util.spec_from_file_location("lab_store", STORE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(name: str, regime: str = "calm", t5: float = 0.5) -> dict:
    return {
        "regime": regime,
        "name": name,
        "steps": 3,
        "summary": {"t5": t5},
        "curves": {"reward": [[1, t5]]},
    }


def test_what_is_stored_comes_back_and_a_repeated_run_takes_the_old_ones_place(store, tmp_path) -> None:
    store.add([run("grpo--seed1"), run("grpo--seed0"), run("bapo--seed0", "wild")], tmp_path)
    assert list(store.read("calm", tmp_path)) == ["grpo--seed0", "grpo--seed1"]
    before = (tmp_path / "calm.jsonl.gz").read_bytes()
    store.add([run("grpo--seed1")], tmp_path)
    assert (tmp_path / "calm.jsonl.gz").read_bytes() == before
    store.add([run("grpo--seed1", t5=0.75)], tmp_path)
    assert store.read("calm", tmp_path)["grpo--seed1"] == run("grpo--seed1", t5=0.75)
    assert len(list(store.read_all(tmp_path))) == 3
    assert store.read("unknown", tmp_path) == {}


def test_runs_that_end_at_once_are_all_stored(store, tmp_path) -> None:
    threads = [threading.Thread(target=store.add, args=([run(f"c--seed{i}")], tmp_path)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.read("calm", tmp_path)) == 8


def test_runs_of_another_machine_are_brought_home(store, tmp_path) -> None:
    away = tmp_path / "away"
    store.add([run("grpo--seed3"), run("bapo--seed3")], away)
    (away / "one.json").write_text(json.dumps(run("capo--seed3", "wild")))
    (away / "other.json").write_text(json.dumps({"no": "run"}))
    found = store.found_in(away)
    assert sorted(one["name"] for one in found) == ["bapo--seed3", "capo--seed3", "grpo--seed3"]
    store.add([run("grpo--seed0")], tmp_path)
    store.add(found, tmp_path)
    assert list(store.read("calm", tmp_path)) == ["bapo--seed3", "grpo--seed0", "grpo--seed3"]


def test_the_repositorys_own_runs_can_be_read(store) -> None:
    runs = list(store.read_all())
    assert len({(one["regime"], one["name"]) for one in runs}) == len(runs) >= 321
    assert all(one["curves"]["reward"] for one in runs)
