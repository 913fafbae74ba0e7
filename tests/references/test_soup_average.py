"""Weight averaging: exactness, ties, buffers, and every guard."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from posttrain.references.soup import UNRELATED, average, distance


def test_average_by_hand():
    soup = average([{"w": torch.tensor([1.0, 3.0])}, {"w": torch.tensor([5.0, -1.0])}], [0.25, 0.75])
    assert soup["w"].tolist() == [4.0, 0.0]


def test_vectors_of_a_tabular_policy():
    """Averaged logits give the normalised geometric mixture, and its KL identity holds."""
    logits1 = torch.tensor([1.0, 0.2, -0.5, 0.0], dtype=torch.float64)
    logits2 = torch.tensor([-0.3, 1.1, 0.4, 0.0], dtype=torch.float64)
    log1, log2 = logits1.log_softmax(0), logits2.log_softmax(0)
    soup = average([{"logits": logits1}, {"logits": logits2}], [0.5, 0.5])["logits"].log_softmax(0)
    log_z = torch.logsumexp(0.5 * log1 + 0.5 * log2, 0)
    assert_close(log_z.item(), -0.106761079546, atol=1e-11, rtol=0)

    def kl(p, q):
        return (p.exp() * (p - q)).sum()

    assert_close(kl(log1, soup).item(), 0.122177995826, atol=1e-11, rtol=0)
    policy = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64).log()
    identity = 0.5 * kl(policy, log1) + 0.5 * kl(policy, log2) + log_z
    assert_close(kl(policy, soup), identity, atol=1e-14, rtol=0)


def test_weight_one_gives_the_first_model_back_bit_for_bit():
    first = {"w": torch.randn(50, generator=torch.Generator().manual_seed(0)).bfloat16()}
    first["w"][0] = -0.0
    other = {"w": torch.full((50,), math.inf).bfloat16()}
    soup = average([first, other], [1.0, 0.0])
    assert torch.equal(soup["w"].view(torch.int16), first["w"].view(torch.int16))  # the sign of a zero too
    assert soup["w"].dtype == torch.bfloat16
    assert soup["w"].data_ptr() != first["w"].data_ptr()


def test_distance_tells_kin_from_strangers():
    def draw(seed: int) -> dict[str, torch.Tensor]:
        weights = torch.randn(80, 50, generator=torch.Generator().manual_seed(seed))
        return {"w": weights, "norm": torch.full((50,), 100.0), "n": torch.tensor([seed])}

    base, stranger = draw(0), draw(1)
    kin = base | {"w": base["w"] + 0.1 * stranger["w"]}
    assert distance(base, kin) == pytest.approx(0.1, rel=0.05)
    assert distance(base, stranger) == pytest.approx(math.sqrt(2), rel=0.05)
    assert distance(base, kin) < UNRELATED < distance(base, stranger)
    # by hand: |(3, 4) - (0, 0)| = 5, the larger size is 5
    assert distance({"w": torch.tensor([[3.0, 4.0]])}, {"w": torch.zeros(1, 2)}) == 1.0


def test_distance_is_taken_in_float64():
    one = {"w": torch.ones(300, 7, dtype=torch.bfloat16), "norm": torch.ones(3)}
    two = {"w": torch.full((300, 7), 1 + 2**-7, dtype=torch.bfloat16), "norm": torch.zeros(3)}
    assert distance(one, two) == pytest.approx(2**-7 / (1 + 2**-7), rel=1e-9)  # over the larger of the two
    assert distance(two, one) == distance(one, two)


def test_sums_are_taken_in_float64_and_rounded_once():
    # in bfloat16, three thirds added one after another would lose the last bit
    third = [{"w": torch.tensor([1.0 + 2**-7], dtype=torch.bfloat16)} for _ in range(3)]
    assert average(third, [1 / 3] * 3)["w"].item() == 1.0 + 2**-7
    # float32: 2^24 + 1 is not representable, so a float32 sum of halves would lose the 1
    pair = [{"w": torch.tensor([2.0**25])}, {"w": torch.tensor([4.0])}]
    assert average(pair, [0.5, 0.5])["w"].item() == torch.tensor(2.0**24 + 2).item()
    many = [{"w": torch.tensor([2.0**24])}] + [{"w": torch.tensor([1.0])}] * 8
    weights = [0.5] + [0.0625] * 8
    assert (
        average(many, weights)["w"].item() == torch.tensor(2.0**23 + 0.5, dtype=torch.float64).float().item()
    )


def test_order_of_models_does_not_matter_for_equal_weights():
    a = {"w": torch.randn(9, generator=torch.Generator().manual_seed(1))}
    b = {"w": torch.randn(9, generator=torch.Generator().manual_seed(2))}
    assert torch.equal(average([a, b], [0.3, 0.7])["w"], average([b, a], [0.7, 0.3])["w"])


def test_tied_weights_are_averaged_once_and_stay_tied():
    def tied(value: float) -> dict[str, torch.Tensor]:
        table = torch.full((4, 2), value)
        return {"model.embed_tokens.weight": table, "lm_head.weight": table}

    soup = average([tied(1.0), tied(2.0)], [0.5, 0.5])
    assert soup["lm_head.weight"].data_ptr() == soup["model.embed_tokens.weight"].data_ptr()
    assert soup["lm_head.weight"].unique().tolist() == [1.5]
    untied = {"model.embed_tokens.weight": torch.ones(4, 2), "lm_head.weight": torch.zeros(4, 2)}
    with pytest.raises(ValueError, match="tied to 'model.embed_tokens.weight' in model 0"):
        average([tied(1.0), untied], [0.5, 0.5])


def test_equal_tensors_of_separate_memory_are_not_taken_for_tied():
    state = {"a": torch.ones(3), "b": torch.ones(3)}
    other = {"a": torch.zeros(3), "b": torch.ones(3)}
    soup = average([state, other], [0.5, 0.5])
    assert soup["a"].tolist() == [0.5] * 3
    assert soup["b"].tolist() == [1.0] * 3


def test_integer_buffers_are_compared_not_averaged():
    same = [{"steps": torch.tensor([3]), "w": torch.ones(1)} for _ in range(2)]
    soup = average(same, [0.5, 0.5])
    assert soup["steps"].tolist() == [3]
    assert soup["steps"].dtype == torch.int64
    differing = [{"steps": torch.tensor([3])}, {"steps": torch.tensor([4])}]
    with pytest.raises(ValueError, match="'steps'.*differ between model 0 and model 1"):
        average(differing, [1.0, 0.0])


@pytest.mark.parametrize(
    ("states", "weights", "message"),
    [
        ([{"a": torch.ones(1)}, {"b": torch.ones(1)}], [0.5, 0.5], "lacks \\['a'\\] and adds \\['b'\\]"),
        (
            [{"embed.weight": torch.ones(5, 2)}, {"embed.weight": torch.ones(6, 2)}],
            [0.5, 0.5],
            "'embed.weight' is \\(5, 2\\) in model 0 but \\(6, 2\\) in model 1 \\(another vocabulary",
        ),
        ([{"w": torch.ones(2)}, {"w": torch.ones(2).to(torch.int8)}], [0.5, 0.5], "quantised"),
        ([{"w": torch.ones(2)}, {"x.lora_A.weight": torch.ones(2)}], [0.5, 0.5], "unmerged adapter"),
        ([{"w": torch.ones(2)}] * 2, [1.0], "2 models but 1 weights"),
        ([{"w": torch.ones(2)}] * 2, [0.5, 0.6], "sum to 1.1"),
        ([{"w": torch.ones(2)}] * 2, [1.5, -0.5], "not negative"),
        ([{"w": torch.ones(2)}] * 2, [math.nan, 1.0], "finite"),
        ([], [], "no models"),
    ],
)
def test_guards_name_the_cause(states, weights, message):
    with pytest.raises(ValueError, match=message):
        average(states, weights)
