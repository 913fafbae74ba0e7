"""Long completions cut at a budget and continued: whole groups, marked tokens, nothing lost."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from posttrain.rollout.base import Completion, Sampling
from posttrain.rollout.partial import Pool, from_plain, join, to_plain

LENGTHS = {10: 3, 20: 9, 30: 5, 40: 2}  # first prompt token -> when its completions stop


class Scripted:
    """Token t of a prompt's completion is its position; it stops at the prompt's length. Notes each call."""

    def __init__(self) -> None:
        self.version = 0
        self.calls: list[list[tuple[int, int]]] = []  # (tokens already there, budget)
        self.seeds: list[int | None] = []

    def __call__(self, prompts: list[list[int]], samplings: list[Sampling]) -> list[Completion]:
        self.calls.append([(len(p) - 1, s.max_new_tokens) for p, s in zip(prompts, samplings, strict=True)])
        self.seeds += [one.seed for one in samplings]
        done = []
        for prompt, sampling in zip(prompts, samplings, strict=True):
            there, whole = len(prompt) - 1, LENGTHS[prompt[0]]
            length = min(sampling.max_new_tokens, whole - there)
            tokens = [100 + there + i for i in range(length)]
            finish = "stop" if there + length == whole else "length"
            done.append(
                Completion(tokens, [-float(self.version)] * length, finish, ((self.version, length),))
            )
        return done


def pool_of(*firsts: int, limit: int = 8, budget: int = 4, size: int = 2) -> Pool:
    pool = Pool(Sampling(max_new_tokens=limit), budget, seed=5)
    pool.draw(
        [[first] for first in firsts for _ in range(size)],
        [{"row": f} for f in firsts for _ in range(size)],
        size,
    )
    return pool


def test_ended_groups_leave_and_long_ones_go_on_with_later_weights() -> None:
    engine = Scripted()
    pool = pool_of(10, 20, 30, 40)
    first = pool.run(2, engine)
    assert [group.prompt for group in first] == [[10], [40]]  # 3 and 2 tokens fit the budget of 4
    assert engine.calls == [[(0, 4)] * 8]
    engine.version = 1
    second = pool.run(2, engine)
    assert [group.prompt for group in second] == [[20], [30]]
    assert engine.calls[1] == [(4, 4)] * 4
    done = join(second[0].parts[0])
    assert done.token_ids == [100 + i for i in range(8)]  # the limit of 8 cuts what would have been 9
    assert done.segments == ((0, 4), (1, 4))
    assert done.logprobs == [0.0] * 4 + [-1.0] * 4
    assert (done.finish, join(second[1].parts[1]).finish) == ("length", "stop")
    assert second[1].rows == [{"row": 30}] * 2
    assert pool.groups == []


def test_a_round_goes_on_until_enough_groups_have_ended() -> None:
    engine = Scripted()
    pool = pool_of(20, 30)
    assert [group.prompt for group in pool.run(1, engine)] == [
        [20]
    ]  # both end in the second slice; the older goes
    assert len(engine.calls) == 2
    assert [group.prompt for group in pool.run(1, engine)] == [[30]]
    assert len(engine.calls) == 2  # it was there already
    with pytest.raises(ValueError, match="1 groups are wanted, 0 are under way"):
        pool.run(1, engine)


def test_a_part_never_exceeds_what_is_left() -> None:
    engine = Scripted()
    pool_of(20, limit=7, budget=3).run(1, engine)
    assert [call[0] for call in engine.calls] == [(0, 3), (3, 3), (6, 1)]


def test_neighbours_of_a_group_have_seeds_that_follow() -> None:
    engine = Scripted()
    pool_of(10, 40).run(2, engine)
    a, b, c, d = engine.seeds
    assert (b, d) == (a + 1, c + 1)
    assert a != c


def test_uncut_and_cut_are_the_same_tokens() -> None:
    whole, cut = Scripted(), Scripted()
    uncut = pool_of(20, 30, budget=7, limit=8).run(2, whole)
    sliced = pool_of(20, 30, budget=1, limit=8).run(2, cut)
    for a, b in zip(uncut, sliced, strict=True):
        assert [join(parts) for parts in a.parts] == [join(parts) for parts in b.parts]


def test_a_pool_survives_a_checkpoint() -> None:
    engine = Scripted()
    pool = pool_of(10, 20, 30)
    pool.drawn_rounds = 1
    pool.run(1, engine)
    again = Pool(pool.sampling, pool.budget, pool.seed)
    again.load_state_dict(json.loads(json.dumps(pool.state_dict())))
    engine.version = 3
    one, other = Scripted(), Scripted()
    one.version = other.version = 3
    assert [g.parts for g in again.run(2, one)] == [g.parts for g in pool.run(2, other)]
    assert one.seeds == other.seeds
    assert (again.drawn, again.drawn_rounds) == (3, 1)


def test_joining_merges_neighbours_of_one_version() -> None:
    part = Completion([1, 2], [-1.0, -2.0], "length", ((4, 2),))
    last = replace(part, finish="stop", segments=((5, 2),))
    assert join([part, part, last]).segments == ((4, 4), (5, 2))
    assert from_plain(json.loads(json.dumps(to_plain(last)))) == last


def test_each_slice_of_a_completion_has_a_seed_of_its_own() -> None:
    engine = Scripted()
    pool_of(20, limit=8, budget=3, size=1).run(1, engine)
    assert (
        len(engine.seeds) == len(set(engine.seeds)) == 3
    )  # the same draws thrice would repeat the same tokens


def test_a_group_waits_for_the_last_of_its_completions() -> None:
    class OneStopsEarly(Scripted):
        def __call__(self, prompts: list[list[int]], samplings: list[Sampling]) -> list[Completion]:
            done = super().__call__(prompts, samplings)
            return [replace(done[0], finish="stop"), *done[1:]] if len(self.calls) == 1 else done

    engine = OneStopsEarly()
    (group,) = pool_of(20).run(1, engine)
    assert [len(join(parts).token_ids) for parts in group.parts] == [4, 8]
    assert [len(call) for call in engine.calls] == [2, 1]  # the one that has ended is not continued
