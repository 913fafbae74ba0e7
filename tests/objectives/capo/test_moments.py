"""The optimizer model's row moments, against torch's own Adam and by hand."""

from __future__ import annotations

import torch
from torch import tensor
from torch.testing import assert_close

from posttrain.objectives.capo import moments as module
from posttrain.objectives.capo.moments import Moments, RowGradients


def one_rank(values: torch.Tensor) -> torch.Tensor:
    return values


def random_gradients(
    seed: int, tokens: int = 7, vocabulary: int = 9, k: int = 4, hidden: int = 3
) -> RowGradients:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.stack([torch.randperm(vocabulary, generator=generator)[:k] for _ in range(tokens)])
    coefficients = torch.randn(tokens, k, generator=generator, dtype=torch.float64)
    states = torch.randn(tokens, hidden, generator=generator, dtype=torch.float64)
    return RowGradients(ids, coefficients, states, torch.ones(tokens, dtype=torch.float64))


def dense(gradients: RowGradients, vocabulary: int) -> torch.Tensor:
    """Mean over occurrences of the row, with the (N, K, H) tensor the library never builds. (V, H)."""
    sums = torch.zeros(vocabulary, gradients.hidden.size(1), dtype=torch.float64)
    counts = torch.zeros(vocabulary, dtype=torch.float64)
    for ids, coefficients, hidden, weight in zip(*gradients, strict=True):
        for row, coefficient in zip(ids, coefficients, strict=True):
            sums[row] += weight * coefficient * hidden
            counts[row] += weight
    return sums / counts.clamp(min=1).unsqueeze(1)


def test_update_divides_by_the_occurrences_of_the_row():
    ids = tensor([[0, 2], [2, 5]])
    gradients = RowGradients(
        ids, tensor([[1.0, 2.0], [4.0, 8.0]]), tensor([[1.0, 0.0], [1.0, 1.0]]), torch.ones(2)
    )
    moments = Moments(decay=(0.5, 0.75))
    moments.update([gradients], one_rank)
    state = moments.state_dict()
    assert state["step"] == 1
    assert state["ids"].tolist() == [0, 2, 5]
    means = tensor([[1.0, 0.0], [3.0, 2.0], [8.0, 8.0]])  # row 2: ((2, 0) + (4, 4)) / 2
    assert_close(state["first"], means / 2)
    assert_close(state["second"], means.square() / 4)


def test_dropped_tokens_touch_nothing():
    gradients = random_gradients(0)
    weights = gradients.weights.clone()
    weights[3:] = 0
    moments, only = Moments(), Moments()
    moments.update([gradients._replace(weights=weights)], one_rank)
    only.update([RowGradients(*(part[:3] for part in gradients))], one_rank)
    assert moments.state_dict()["ids"].tolist() == only.state_dict()["ids"].tolist()
    assert_close(moments.state_dict()["first"], only.state_dict()["first"])


def test_untouched_rows_stay_while_the_step_advances():
    first = RowGradients(tensor([[1]]), tensor([[2.0]]), tensor([[3.0]]), torch.ones(1))
    second = RowGradients(tensor([[4]]), tensor([[1.0]]), tensor([[1.0]]), torch.ones(1))
    nothing = second._replace(weights=torch.zeros(1))
    moments = Moments()
    moments.update([first], one_rank)
    row = moments.state_dict()["first"][0].clone()
    moments.update([second], one_rank)
    moments.update([nothing], one_rank)
    state = moments.state_dict()
    assert state["step"] == 3
    assert state["ids"].tolist() == [1, 4]
    assert torch.equal(state["first"][0], row)


def test_a_planned_step_is_torch_adams_next_step():
    vocabulary, lr = 9, 0.1
    weight = torch.nn.Parameter(torch.zeros(vocabulary, 3, dtype=torch.float64))
    adam = torch.optim.Adam([weight], lr=lr, betas=(0.9, 0.999), eps=1e-8)
    moments = Moments()
    every_row = [
        list(range(vocabulary))
    ]  # all rows in each step, as torch's Adam decays what it does not touch
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        gradients = RowGradients(
            tensor(every_row),
            torch.randn(1, vocabulary, generator=generator, dtype=torch.float64),
            torch.randn(1, 3, generator=generator, dtype=torch.float64),
            torch.ones(1, dtype=torch.float64),
        )
        before = weight.detach().clone()
        weight.grad = dense(gradients, vocabulary)
        adam.step()
        planned = moments.logit_change(*gradients[:3]) if moments.step else None
        if planned is not None:  # step 0 plans the raw gradient
            change = (before - weight.detach()) / lr @ gradients.hidden[0]
            assert_close(planned[0], change)
        moments.update([gradients], one_rank)


def test_cold_start_is_the_gradient_or_adams_first_step():
    gradients = random_gradients(1)
    raw, adam = Moments(), Moments(cold_start="adam")
    assert not raw.acts
    assert adam.acts
    planned = adam.logit_change(*gradients[:3])
    expected = torch.einsum(
        "nk,nh,nh->nk", gradients.coefficients.sign(), gradients.hidden.sign(), gradients.hidden
    )
    assert_close(planned, expected, rtol=1e-5, atol=1e-5)


def test_splitting_changes_nothing(monkeypatch):
    gradients = random_gradients(2, tokens=10)
    whole, split = Moments(), Moments()
    parts = [RowGradients(*(p[:4] for p in gradients)), RowGradients(*(p[4:] for p in gradients))]
    for _ in range(2):
        whole.update([gradients], one_rank)
        split.update(parts, one_rank)
    assert_close(whole.state_dict(), split.state_dict())
    expected = whole.logit_change(*gradients[:3])
    monkeypatch.setattr(module, "CPU_CHUNK", 1)
    assert_close(whole.logit_change(*gradients[:3]), expected)
    assert_close(whole.logit_change(*(p[:0] for p in gradients[:3])), expected[:0])


def test_state_survives_a_round_trip_and_more_rows():
    moments, restored = Moments(), Moments()
    for seed in range(3):
        moments.update([random_gradients(seed, vocabulary=20 + 30 * seed)], one_rank)
    restored.load_state_dict(moments.state_dict())
    later = random_gradients(9, vocabulary=200)
    assert torch.equal(moments.logit_change(*later[:3]), restored.logit_change(*later[:3]))
    moments.update([later], one_rank)
    restored.update([later], one_rank)
    assert_close(moments.state_dict(), restored.state_dict(), rtol=0, atol=0)
    fresh = Moments()
    fresh.load_state_dict(Moments().state_dict())
    fresh.update([later], one_rank)
    assert fresh.step == 1
