"""The head in tiles against the plain formula: values, gradients, candidates, and what is never made."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from posttrain.ops.logprobs import token_entropy, token_logprobs, top_candidates
from posttrain.ops.scored_head import HeadShape, scored_tokens


def inputs(dtype: torch.dtype = torch.float64, count: int = 37, hidden: int = 6, vocabulary: int = 50):
    torch.manual_seed(0)
    make = lambda *shape: torch.randn(*shape, dtype=dtype, requires_grad=True)  # noqa: E731
    return (
        make(count, hidden),
        make(vocabulary, hidden),
        make(vocabulary),
        torch.randint(vocabulary, (count,)),
    )


def plain(hidden: Tensor, weight: Tensor, bias: Tensor | None, shape: HeadShape) -> Tensor:
    logits = torch.nn.functional.linear(hidden, weight, bias) * shape.scale
    if shape.softcap is not None:
        logits = shape.softcap * torch.tanh(logits / shape.softcap)
    return logits / shape.temperature


SHAPES = [HeadShape(), HeadShape(temperature=0.7), HeadShape(scale=0.25), HeadShape(0.5, 3.0, 1.3)]


def test_by_hand() -> None:
    """One position, two tokens with logits 0 and log 3: probabilities 1/4 and 3/4."""
    hidden = torch.tensor([[1.0]], requires_grad=True)
    weight = torch.tensor([[0.0], [float(torch.tensor(3.0).log())]])
    found = scored_tokens(hidden, weight, torch.tensor([1]), entropy=True)
    assert found.logprobs.item() == pytest.approx(-0.28768, abs=1e-5)  # log(3/4)
    assert found.entropy is not None
    assert found.entropy.item() == pytest.approx(0.56234, abs=1e-5)  # -(1/4 log 1/4 + 3/4 log 3/4)
    found.logprobs.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.item() == pytest.approx(0.25 * 1.09861, abs=1e-5)  # (1 - 3/4) log 3


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("with_bias", [False, True])
def test_values_and_gradients_are_those_of_the_whole_logits(shape: HeadShape, with_bias: bool) -> None:
    hidden, weight, bias, targets = inputs()
    given = bias if with_bias else None
    leaves = [hidden, weight, *([bias] if with_bias else [])]
    found = scored_tokens(
        hidden, weight, targets, bias=given, shape=shape, entropy=True, tile_elements=16 * 50
    )
    logits = plain(hidden, weight, given, shape)
    assert found.entropy is not None
    assert_close(found.logprobs, token_logprobs(logits, targets), rtol=0, atol=1e-12)
    assert_close(found.entropy, token_entropy(logits), rtol=0, atol=1e-12)
    factors = torch.randn(2, len(targets), dtype=torch.float64)
    ours = torch.autograd.grad((factors[0] * found.logprobs + factors[1] * found.entropy).sum(), leaves)
    whole = factors[0] * token_logprobs(logits, targets) + factors[1] * token_entropy(logits)
    for one, other in zip(ours, torch.autograd.grad(whole.sum(), leaves), strict=True):
        assert_close(one, other, rtol=0, atol=1e-11)


@pytest.mark.parametrize("used", ["logprobs", "entropy"])
def test_either_output_may_go_unused(used: str) -> None:
    hidden, weight, _, targets = inputs()
    found = vars(scored_tokens(hidden, weight, targets, entropy=True))[used]
    logits = plain(hidden, weight, None, HeadShape())
    whole = token_logprobs(logits, targets) if used == "logprobs" else token_entropy(logits)
    for one, other in zip(
        torch.autograd.grad(found.sum(), [hidden, weight]),
        torch.autograd.grad(whole.sum(), [hidden, weight]),
        strict=True,
    ):
        assert_close(one, other, rtol=0, atol=1e-11)


def test_candidates_are_the_most_likely_with_the_target_among_them() -> None:
    hidden, weight, bias, targets = inputs()
    shape = HeadShape(0.5, 3.0, 1.3)
    found = scored_tokens(
        hidden, weight, targets, bias=bias, shape=shape, num_candidates=5, tile_elements=16 * 50
    )
    ids, logits = top_candidates(plain(hidden, weight, bias, shape), targets, 5)
    assert found.candidate_ids is not None
    assert found.candidate_logits is not None
    assert torch.equal(found.candidate_ids, ids)
    assert_close(found.candidate_logits, logits.detach(), rtol=0, atol=1e-12)
    assert not found.candidate_logits.requires_grad


def test_tiles_of_any_size_give_the_same() -> None:
    hidden, weight, _, targets = inputs(torch.float32)
    one, other = (scored_tokens(hidden, weight, targets, tile_elements=size) for size in (1, 10**9))
    assert_close(one.logprobs, other.logprobs, rtol=0, atol=1e-6)


def test_half_precision_is_scored_in_float32() -> None:
    hidden, weight, _, targets = inputs(torch.bfloat16)
    found = scored_tokens(hidden, weight, targets)
    assert found.logprobs.dtype == torch.float32
    logits = (hidden @ weight.t()).float()  # the product itself in bfloat16
    assert_close(found.logprobs, token_logprobs(logits, targets), rtol=0, atol=1e-5)
    found.logprobs.sum().backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    assert (hidden.grad.dtype, weight.grad.dtype) == (torch.bfloat16, torch.bfloat16)


def test_autocast_narrows_the_products_only() -> None:
    hidden, weight, _, targets = inputs(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = scored_tokens(hidden, weight, targets)
    logits = (hidden.bfloat16() @ weight.bfloat16().t()).float()
    assert_close(found.logprobs, token_logprobs(logits, targets), rtol=0, atol=1e-5)


def test_no_position_and_a_frozen_head() -> None:
    hidden, weight, _, targets = inputs()
    empty = scored_tokens(hidden[:0], weight, targets[:0], entropy=True)
    empty.logprobs.sum().backward()
    assert hidden.grad is not None
    assert not hidden.grad.any()
    frozen = weight.detach()
    scored_tokens(hidden, frozen, targets).logprobs.sum().backward()
    assert hidden.grad.any()


def test_shapes_are_checked() -> None:
    hidden, weight, _, targets = inputs()
    with pytest.raises(ValueError, match=r"must be \(N, H\) and \(N,\)"):
        scored_tokens(hidden[None], weight, targets)
