"""Rows to requests to servers, and back."""

from __future__ import annotations

from posttrain.rollout.base import Sampling, rows
from posttrain.rollout.vllm.spreading import merge_rows, spread


def test_a_group_is_one_request() -> None:
    found = merge_rows(rows([[1, 2], [1, 2], [3]], Sampling(n=2, seed=7)))
    assert [(r.first, r.prompt, r.sampling.n, r.sampling.seed) for r in found] == [
        (0, [1, 2], 4, 7),
        (4, [3], 2, 11),
    ]


def test_rows_that_differ_stay_apart() -> None:
    one = Sampling(seed=1, max_new_tokens=5)
    other_limit = Sampling(seed=2, max_new_tokens=6)
    other_seed = Sampling(seed=9, max_new_tokens=6)
    found = merge_rows([([1], one), ([1], other_limit), ([1], other_seed)])
    assert [r.sampling.n for r in found] == [1, 1, 1]


def test_unseeded_neighbours_merge() -> None:
    assert [r.sampling.n for r in merge_rows(rows([[1], [1]], Sampling()))] == [2]


def test_every_request_goes_to_the_server_with_least_to_write() -> None:
    requests = merge_rows([([i], Sampling(max_new_tokens=limit)) for i, limit in enumerate([10, 60, 20, 30])])
    parts = spread(requests, 2)
    assert [[r.sampling.max_new_tokens for r in part] for part in parts] == [[60], [30, 20, 10]]
    assert sorted(r.first for part in parts for r in part) == [0, 1, 2, 3]
    assert spread(requests[:1], 3) == [[requests[0]], [], []]
