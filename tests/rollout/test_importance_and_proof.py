"""Corrections of the sampling log-probs, and the proof that engine and trainer agree."""

from __future__ import annotations

import math

import pytest
import torch

from posttrain.rollout.checksum import checksum, signature
from posttrain.rollout.importance import importance_ratio
from posttrain.rollout.proof import explain_gap, first_difference, largest_gap

# log-ratios of two responses; the last token of the second is not the policy's
LOG_RATIO = torch.tensor([[math.log(2.0), math.log(4.0), 0.0], [math.log(0.5), math.log(0.2), 9.0]])
MASK = torch.tensor([[1, 1, 1], [1, 1, 0]])
SAMPLING = torch.full((2, 3), -1.0)


@pytest.mark.parametrize(
    ("mode", "bounds", "want"),
    [
        ("token_truncate", (3.0, None), [[2.0, 3.0, 1.0], [0.5, 0.2, 1.0]]),
        ("token_truncate", (3.0, 0.4), [[2.0, 3.0, 1.0], [0.5, 0.4, 1.0]]),
        ("token_mask", (3.0, None), [[2.0, 0.0, 1.0], [0.5, 0.2, 1.0]]),
        ("token_mask", (3.0, 0.4), [[2.0, 0.0, 1.0], [0.5, 0.0, 1.0]]),
        ("token_mask", (None, None), [[2.0, 4.0, 1.0], [0.5, 0.2, 1.0]]),
        ("token_truncate", (None, None), [[2.0, 4.0, 1.0], [0.5, 0.2, 1.0]]),
        ("sequence_truncate", (3.0, None), [[3.0], [0.1]]),
        ("sequence_mask", (3.0, None), [[0.0], [0.1]]),
        ("sequence_mask", (9.0, 0.2), [[8.0], [0.0]]),
    ],
)
def test_corrections_by_hand(mode: str, bounds: tuple, want: list) -> None:
    found = importance_ratio(SAMPLING + LOG_RATIO, SAMPLING, MASK, mode, *bounds)
    torch.testing.assert_close(found, torch.tensor(want))


def test_trls_default_bound_is_three() -> None:
    ratio = importance_ratio(SAMPLING + LOG_RATIO, SAMPLING, MASK, "token_truncate")
    assert ratio.max() == 3.0


def test_what_is_not_the_policys_token_may_be_anything() -> None:
    broken = SAMPLING.clone()
    broken[1, 2] = math.nan
    assert importance_ratio(SAMPLING, broken, MASK, "sequence_mask").isfinite().all()


def test_an_unknown_correction_is_refused() -> None:
    with pytest.raises(ValueError, match="'truncate' is none of token_truncate"):
        importance_ratio(SAMPLING, SAMPLING, MASK, "truncate")


def test_the_gap_is_over_the_tokens_that_are_there() -> None:
    trainer = torch.tensor([[-1.0, -2.0, 77.0], [-3.0, -1.0, -0.5]])
    assert largest_gap([[-1.1, -2.0], [-3.0, -1.0, -0.75]], trainer) == pytest.approx(0.25)
    assert math.isnan(largest_gap([[math.nan]], trainer))
    assert largest_gap([], trainer) == 0.0


def test_a_checksum_sees_every_element_and_its_place() -> None:
    tensor = torch.arange(12.0).view(3, 4)
    changed, exchanged = tensor.clone(), tensor.clone()
    changed[2, 3] += 1e-6
    exchanged[0, 0], exchanged[0, 1] = tensor[0, 1], tensor[0, 0]
    assert len({checksum(one) for one in (tensor, changed, exchanged, tensor.bfloat16())}) == 4
    assert checksum(tensor.t()) == checksum(tensor.t().contiguous())
    assert signature(torch.zeros(0)) == ("float32", 0)


def test_a_checksum_by_hand() -> None:
    # bit patterns of bfloat16 1.0 and -2.0: 0x3f80 and 0xc000 (signed: -16384); weights 1 and 2
    assert checksum(torch.tensor([1.0, -2.0], dtype=torch.bfloat16)) == 0x3F80 + 2 * (0xC000 - 0x10000)


def test_a_checksum_does_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    whole = checksum(tensor)
    monkeypatch.setattr("posttrain.rollout.checksum._CHUNK", 7)
    assert checksum(tensor) == whole


WEIGHTS = [("a", torch.ones(2)), ("b", torch.zeros(3)), ("c", torch.ones(1))]


def test_the_first_tensor_that_differs_is_named() -> None:
    given = {name: signature(tensor) for name, tensor in WEIGHTS}
    assert first_difference(iter(WEIGHTS), given) == (None, 3)
    assert first_difference(iter(WEIGHTS), {**given, "b": ("float32", 5), "c": ("float32", 5)}) == (
        "b (other values than the trainer's)",
        3,
    )
    del given["a"]
    assert first_difference(iter(WEIGHTS), given)[0] == "a (never received by the engine)"


def test_tensors_are_compared_in_the_engines_dtype() -> None:
    given = {name: signature(tensor.bfloat16()) for name, tensor in WEIGHTS}
    assert first_difference(iter(WEIGHTS), given) == (None, 3)


def test_the_message_says_what_to_look_at() -> None:
    differs = explain_gap(0.8, 1e-3, "vllm_server", 4, "b (other values)", 3)
    assert "weight version 4" in differs
    assert "First tensor that differs: b" in differs
    arrived = explain_gap(0.8, 1e-3, "vllm_server", 4, None, 3)
    assert "All 3 tensors arrived" in arrived
    assert "rollout.vllm.proof_limit" in arrived


def test_the_largest_gap_by_hand() -> None:
    trainer = torch.tensor([[-1.0, -2.0, -9.0], [-3.0, -4.0, -5.0]])
    assert (
        largest_gap([[-1.5, -2.25], [-3.0, -4.0, -4.25]], trainer) == 0.75
    )  # padding does not count, signs neither
    assert largest_gap([[-0.75], [-3.0]], trainer) == 0.25
    assert largest_gap([[], []], trainer) == 0.0
    assert math.isnan(largest_gap([[math.nan], [-3.0]], trainer))


def test_a_bound_itself_is_within_it() -> None:
    ratio = torch.tensor([[math.log(2.0), math.log(0.5)]])
    ones, zero = torch.ones(1, 2), torch.zeros(1, 2)
    exact = ratio.exp()
    found = importance_ratio(ratio, zero, ones, "token_mask", exact[0, 0].item(), exact[0, 1].item())
    assert torch.equal(found, exact)


def test_all_tensors_are_consumed_after_the_first_that_differs() -> None:
    tensors = [(name, torch.ones(2)) for name in ("a", "b", "c", "d")]
    good = {name: signature(tensor) for name, tensor in tensors}
    source = iter(tensors)
    found, compared = first_difference(
        source, {**good, "b": signature(torch.zeros(2)), "c": signature(torch.zeros(2))}
    )
    assert found == "b (other values than the trainer's)"
    assert compared == 4
    assert next(source, None) is None
    assert first_difference(iter(tensors), {"a": good["a"]})[0] == "b (never received by the engine)"
    assert first_difference(iter(tensors), good) == (None, 4)
