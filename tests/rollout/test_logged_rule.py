"""How many places of a group logged answers may take."""

from __future__ import annotations

import pytest

from posttrain.rollout.base import Completion
from posttrain.rollout.logged import LoggedRule
from posttrain.rollout.partial import from_plain, to_plain


@pytest.mark.parametrize(
    ("share", "size", "places"),
    [(0.25, 8, 2), (0.125, 8, 1), (0.25, 2, 1), (0.25, 6, 2), (0.1, 4, 0), (0.9, 4, 4)],
)
def test_places_are_the_share_rounded_halves_up(share: float, size: int, places: int) -> None:
    rule = LoggedRule("teacher", share=share)
    assert rule.places(size) == places
    assert bool(list(rule.faults(size))) == (places in (0, size))


def test_a_checkpoint_keeps_what_was_not_sampled_apart() -> None:
    one = Completion([5, 6, 1], [-0.5, -1.0, -0.1], "stop", (), logged=True)
    assert from_plain(to_plain(one)) == one
    older = {"token_ids": [5], "logprobs": [-1.0], "finish": "stop", "segments": [[3, 1]]}
    assert not from_plain(older).logged
