"""Micro-batches by tokens: parts within the limit, whole groups where they fit, every row once."""

from __future__ import annotations

import pytest
import torch

from posttrain.trainers.forward.token_budget import split_by_tokens


def test_groups_stay_whole_and_their_prompt_counts_once():
    # groups of 10 + 3 + 4 = 17 and 5 + 1 + 2 = 8 tokens
    prompts, completions, groups = [10, 10, 5, 5], [3, 4, 1, 2], [7, 7, 9, 9]
    assert split_by_tokens(prompts, completions, groups, 25) == [[0, 1, 2, 3]]
    assert split_by_tokens(prompts, completions, groups, 24) == [[0, 1], [2, 3]]


def test_a_group_beyond_the_limit_is_cut_and_its_prompt_counts_in_each_piece():
    assert split_by_tokens([10, 10, 10], [3, 4, 2], [0, 0, 0], 16) == [[0], [1, 2]]
    assert split_by_tokens([10, 10], [3, 4], [0, 0], 5) == [
        [0],
        [1],
    ]  # a row alone may be longer than the limit


def test_padded_rows_of_like_length_come_together_and_count_with_their_padding():
    # sorted by length: rows 1 (2+1), 2 (2+2), 0 (6+6); two rows of 2+2 are 8 tokens, all three would be 36
    assert split_by_tokens([6, 2, 2], [6, 1, 2], None, 8) == [[1, 2], [0]]
    assert split_by_tokens([6, 2, 2], [6, 1, 2], None, 36) == [[1, 2, 0]]
    # a long prompt and a long completion in different rows count together
    assert split_by_tokens([8, 1], [1, 8], None, 31) == [[0], [1]]


@pytest.mark.parametrize("shared", [True, False])
def test_every_row_once_and_no_part_beyond_the_limit(shared: bool):
    generator = torch.Generator().manual_seed(0)
    for limit in (30, 60, 200):
        groups = torch.randint(0, 5, (24,), generator=generator).tolist()
        lengths = torch.randint(1, 20, (5,), generator=generator).tolist()
        prompts = [lengths[group] for group in groups]
        completions = torch.randint(0, 25, (24,), generator=generator).tolist()
        parts = split_by_tokens(prompts, completions, groups if shared else None, limit)
        assert sorted(row for part in parts for row in part) == list(range(24))
        for part in parts:
            if shared:
                tokens = sum({groups[row]: prompts[row] for row in part}.values())
                tokens += sum(completions[row] for row in part)
            else:
                tokens = len(part) * (max(prompts[r] for r in part) + max(completions[r] for r in part))
            assert tokens <= limit or len(part) == 1
