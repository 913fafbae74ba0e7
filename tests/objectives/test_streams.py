from __future__ import annotations

import pytest
import torch

from posttrain.objectives.streams import column, response_means, stream_rows


def test_rows_of_a_stream_are_found_by_their_place_and_cut_to_the_batch():
    flat = torch.arange(6.0).view(2, 3)
    assert stream_rows(flat, slice(2, 5), 9).tolist() == [2.0, 3.0, 4.0]
    tokens = torch.arange(24.0).view(2, 3, 4)
    assert stream_rows(tokens, torch.tensor([4, 0]), 2).tolist() == [[16.0, 17.0], [0.0, 1.0]]
    assert stream_rows(tokens, slice(5, 6), 6).tolist() == [[20.0, 21.0, 22.0, 23.0, 0.0, 0.0]]
    assert column(torch.zeros(3)).shape == (3, 1)
    assert column(torch.zeros(3, 2)).shape == (3, 2)
    with pytest.raises(ValueError, match=r"\(P, G\) or \(P, G, T\)"):
        stream_rows(torch.zeros(3), slice(0, 1), 1)


def test_a_response_s_mean_is_over_its_own_tokens():
    values = torch.tensor([[[2.0, 4.0, 9.0], [5.0, 9.0, 9.0], [9.0, 9.0, 9.0]]])
    assert response_means(values, torch.tensor([[2, 1, 0]])).tolist() == [[3.0, 5.0, 0.0]]
    assert response_means(values[..., 0], None).tolist() == [[2.0, 5.0, 9.0]]
    with pytest.raises(ValueError, match="lengths"):
        response_means(values, None)
