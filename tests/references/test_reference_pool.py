"""The pool of past checkpoints: what each rule draws, and that a kill or a resume changes nothing."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from posttrain.references.checkpoint_pool import ReferencePool


def add_marker(pool: ReferencePool, text: str) -> Path:
    return pool.add(lambda folder: (folder / "weights.txt").write_text(text, encoding="utf-8") and None)


def test_initial_and_latest(tmp_path: Path):
    pool = ReferencePool(tmp_path)
    assert [pool.draw(k, "initial") for k in (1, 2, 5)] == [0, 0, 0]
    assert [pool.draw(k, "latest") for k in (1, 2, 5)] == [0, 1, 4]
    with pytest.raises(ValueError, match="count from 1"):
        pool.draw(0, "random")


def test_random_is_uniform_over_all_before_the_round(tmp_path: Path):
    draws = Counter(ReferencePool(tmp_path, seed).draw(4, "random") for seed in range(4000))
    assert sorted(draws) == [0, 1, 2, 3]
    assert all(abs(count - 1000) < 150 for count in draws.values())  # 5 standard deviations
    assert {ReferencePool(tmp_path, seed).draw(1, "random") for seed in range(50)} == {0}


def test_rounds_are_drawn_independently(tmp_path: Path):
    pairs = {
        (pool.draw(2, "random"), pool.draw(3, "random"))
        for pool in map(lambda s: ReferencePool(tmp_path, s), range(200))
    }
    assert pairs == {(a, b) for a in range(2) for b in range(3)}


def test_draws_are_the_pools_own(tmp_path: Path):
    """Neither the process's generator, nor other rounds, nor opening the pool again moves them."""
    pool = ReferencePool(tmp_path, seed=3)
    expected = [pool.draw(k, "random") for k in range(1, 8)]
    random.seed(99)
    random.random()
    assert [ReferencePool(tmp_path, seed=3).draw(k, "random") for k in (7, 2, 5)] == [
        expected[i] for i in (6, 1, 4)
    ]


def test_checkpoints_are_numbered_and_survive_reopening(tmp_path: Path):
    pool = ReferencePool(tmp_path / "pool")
    assert len(pool) == 0
    add_marker(pool, "zero")
    add_marker(pool, "one")
    again = ReferencePool(tmp_path / "pool")
    assert len(again) == 2
    assert (again.path(1) / "weights.txt").read_text(encoding="utf-8") == "one"


def test_a_write_that_dies_leaves_no_checkpoint(tmp_path: Path):
    pool = ReferencePool(tmp_path)

    def dies(folder: Path) -> None:
        (folder / "half.bin").write_bytes(b"0" * 10)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pool.add(dies)
    assert len(pool) == 0
    assert (add_marker(pool, "whole") / "half.bin").exists() is False


def test_records_are_kept_and_the_seed_is_guarded(tmp_path: Path):
    pool = ReferencePool(tmp_path, seed=1)
    pool.record(1, 0)
    pool.record(2, 1)
    pool.record(2, 0)  # a round done again after a resume replaces its note
    assert ReferencePool(tmp_path, seed=1).draws == [0, 0]
    with pytest.raises(ValueError, match="seed 1, not 2"):
        ReferencePool(tmp_path, seed=2)
