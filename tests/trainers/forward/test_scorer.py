"""The scorer's rows, and the padded layout that hands them to TRL's forward."""

from __future__ import annotations

from typing import Any

import torch

from posttrain.trainers.forward.base import Rows, Wanted
from posttrain.trainers.forward.padded import PaddedScorer


def test_ragged_ids_are_padded_outwards():
    rows = Rows.of_lists([[5, 6], [7]], [[8], [9, 10]], filler=0, device="cpu")
    ids, mask = rows.joined
    assert ids.tolist() == [[5, 6, 8, 0], [0, 7, 9, 10]]
    assert mask.tolist() == [[1, 1, 1, 0], [0, 1, 1, 1]]


def test_what_trl_joins_comes_apart_again():
    ids, mask = torch.arange(8).view(2, 4), torch.tensor([[0, 1, 1, 1], [1, 1, 1, 0]])
    rows = Rows.of_joined(ids, mask, 3, {"pixel_values": 1})
    assert rows.prompt_ids.tolist() == [[0], [4]]
    assert rows.completion_mask.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert [one.tolist() for one in rows.joined] == [ids.tolist(), mask.tolist()]


def test_a_slice_of_the_buffer_keeps_groups_and_images():
    part = torch.ones(2, 1, dtype=torch.long)
    inputs = {
        "prompt_ids": part,
        "prompt_mask": part,
        "completion_ids": part * 2,
        "completion_mask": part,
        "group": torch.tensor([0, 1]),
        "pixel_values": "images",
        "advantages": torch.zeros(2),
    }
    rows = Rows.of_buffer(inputs)
    assert rows.groups is not None
    assert rows.groups.tolist() == [0, 1]
    assert rows.extras == {"pixel_values": "images"}


def test_the_padded_layout_asks_trl_for_what_is_wanted():
    asked: list[tuple[Any, ...]] = []

    def forward(model: Any, ids: Any, mask: Any, length: int, **named: Any) -> Any:
        asked.append((model, ids.tolist(), mask.tolist(), length, named))
        return torch.zeros(2, length), torch.ones(2, length) if named["compute_entropy"] else None, None

    rows = Rows.of_lists([[5, 6], [7]], [[8], [9, 10]], filler=0, device="cpu")
    scored = PaddedScorer(forward).score("model", rows, Wanted(entropy=True, rows_at_once=1))
    (call,) = asked
    assert call[:4] == ("model", [[5, 6, 8, 0], [0, 7, 9, 10]], [[1, 1, 1, 0], [0, 1, 1, 1]], 2)
    assert call[4] == {"batch_size": 1, "compute_entropy": True, "compute_aux_loss": False}
    assert scored.logprobs.shape == (2, 2)
    assert scored.entropy is not None
    assert scored.outputs == {}
    assert PaddedScorer(forward).score("model", rows).entropy is None
