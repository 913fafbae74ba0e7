"""KL and Jensen-Shannon over the vocabulary: by hand, exactly 0 for equals, bounds, banned tokens."""

from __future__ import annotations

import math

import pytest
import torch

from posttrain.ops.divergence import vocabulary_js, vocabulary_kl

Q = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]], dtype=torch.float64).log()
P = torch.tensor([[0.6, 0.3, 0.1], [0.3, 0.5, 0.2]], dtype=torch.float64).log()


def test_by_hand():
    # row 1: .7 ln(7/6) + .2 ln(2/3); row 2: .1 ln(1/3) + .8 ln(8/5) + .1 ln(1/2)
    rows = [
        0.7 * math.log(7 / 6) + 0.2 * math.log(2 / 3),
        0.1 * math.log(1 / 3) + 0.8 * math.log(1.6) + 0.1 * math.log(0.5),
    ]
    assert vocabulary_kl(Q, P).tolist() == pytest.approx(rows, abs=1e-14)
    assert vocabulary_kl(Q, P).tolist() == pytest.approx([0.02681245, 0.19682696], abs=5e-9)
    assert float(vocabulary_kl(Q, P).mean()) == pytest.approx(0.111819705366, abs=1e-12)
    assert float(vocabulary_js(Q, P).mean()) == pytest.approx(0.029540447581, abs=1e-12)


def test_only_differences_of_logits_count():
    shifted = P + torch.tensor([[3.0], [-40.0]])
    assert torch.allclose(vocabulary_kl(Q, shifted), vocabulary_kl(Q, P), atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_logits_have_no_divergence_at_all(dtype):
    logits = (torch.randn(5, 999, generator=torch.Generator().manual_seed(0)) * 6).to(dtype)
    assert vocabulary_kl(logits, logits.clone()).tolist() == [0.0] * 5
    assert vocabulary_js(logits, logits.clone()).abs().max() < 1e-6
    assert vocabulary_kl(logits, logits).dtype == torch.float32


def test_js_is_symmetric_and_kl_is_not():
    assert torch.allclose(vocabulary_js(Q, P), vocabulary_js(P, Q), atol=1e-15)
    assert not torch.allclose(vocabulary_kl(Q, P), vocabulary_kl(P, Q), atol=1e-3)


def test_banned_tokens():
    one, other = torch.tensor([[0.0, -math.inf, -math.inf]]), torch.tensor([[-math.inf, 0.0, -math.inf]])
    assert float(vocabulary_js(one, other)) == pytest.approx(math.log(2))  # its largest
    assert float(vocabulary_kl(one, other)) == math.inf
    both = torch.tensor([[0.0, 0.0, -math.inf]])
    assert float(vocabulary_kl(one, both)) == pytest.approx(math.log(2))
    assert float(vocabulary_kl(both, both)) == 0.0
