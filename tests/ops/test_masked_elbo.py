"""ops/masked_elbo: the page's vectors, exact values by enumeration, and what each noise design promises."""

from __future__ import annotations

from itertools import combinations, product
from math import comb

import pytest
import torch
from torch.testing import assert_close

from posttrain.ops.masked_elbo import (
    NOISE,
    Noise,
    count_noise,
    elbo_terms,
    exact_elbo,
    hide_prompt,
    masked_logprobs,
    sample_noise,
    token_logprobs,
)

MASK = 5


def toy_logits(ids):
    """logits[i, v] = sin(0.7 v + 0.3 i) + mean over k != i of cos(0.5 v (tok_k + 1) + 0.2 (k - i)). V = 5,
    float64."""
    length = ids.shape[1]
    v, i = torch.arange(5.0, dtype=torch.float64), torch.arange(float(length), dtype=torch.float64)
    own = torch.sin(0.7 * v + 0.3 * i[:, None])  # (S, V)
    distance = 0.2 * (i[None, :] - i[:, None])  # (S, S): k - i
    pairs = torch.cos(0.5 * v * (ids[:, None, :, None] + 1) + distance[..., None])  # (B, i, k, V)
    others = ~torch.eye(length, dtype=torch.bool)
    return own + (pairs * others[..., None]).sum(2) / (length - 1)


TOKENS = torch.tensor([[1, 3, 0, 2, 4]])


def test_vectors_of_the_toy_predictor():
    masks = torch.tensor([[[1, 0, 0], [0, 1, 1], [1, 1, 1]]])
    noise = Noise.from_times(torch.tensor([[0.25, 0.5, 0.9]], dtype=torch.float64), masks)
    terms = elbo_terms(toy_logits, TOKENS, 2, noise, mask_id=MASK)
    expected = torch.tensor(
        [[-3.5053800517546807, -9.744155231222683, -6.005725129295837]], dtype=torch.float64
    )
    assert_close(terms, expected, rtol=1e-12, atol=0)
    assert_close(terms.mean().item(), -6.418420137424401, rtol=1e-12, atol=0)
    exact = exact_elbo(toy_logits, TOKENS, 2, mask_id=MASK)
    assert_close(exact.item(), -5.626143501118402, rtol=1e-12, atol=0)


def random_joint(length, vocab, seed):
    """A joint distribution over `length` tokens, and the mask predictor made of its exact conditionals."""
    joint = torch.rand((vocab,) * length, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    joint = joint / joint.sum()

    def logits(ids):  # the prompt is one token, which the joint ignores
        out = torch.zeros(*ids.shape, vocab, dtype=torch.float64)
        for b, row in enumerate(ids[:, 1:].tolist()):
            for i in range(length):
                seen = joint
                for axis, token in enumerate(row):
                    if axis != i and token != vocab:
                        seen = seen.index_select(axis, torch.tensor([token]))
                out[b, i + 1] = seen.sum([axis for axis in range(length) if axis != i]).flatten().log()
        return out

    return joint, logits


def test_conditionals_of_one_joint_distribution_make_the_bound_tight():
    joint, logits = random_joint(4, 3, seed=0)
    tokens = torch.tensor([[0, *y] for y in [(0, 1, 2, 0), (2, 2, 1, 0), (1, 1, 1, 1)]])
    expected = torch.stack([joint[tuple(y)].log() for y in tokens[:, 1:].tolist()])
    assert_close(exact_elbo(logits, tokens, 1, mask_id=3), expected, rtol=1e-12, atol=1e-12)


def test_the_bound_of_an_inconsistent_predictor_is_its_mean_over_orders():
    # chain rule along every unmasking order, averaged
    from itertools import permutations

    total = 0.0
    for order in permutations(range(3)):
        ids = TOKENS.clone()
        ids[0, 2:] = MASK
        for i in order:
            total += token_logprobs(toy_logits(ids), TOKENS)[0, 2 + i].item() / 6
            ids[0, 2 + i] = TOKENS[0, 2 + i]
    assert_close(exact_elbo(toy_logits, TOKENS, 2, mask_id=MASK).item(), total, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("design", "n", "slack"),
    [("bernoulli", 4, 5e-2), ("count", 1, 0), ("count", 4, 0), ("complementary", 2, 0)],
)
def test_estimates_within_five_standard_errors_of_the_enumerated_bound(design, n, slack):
    repetitions = 4000
    tokens = TOKENS.expand(repetitions, -1)
    noise = sample_noise(design, (repetitions, 3), n, generator=torch.Generator().manual_seed(1))
    means = elbo_terms(toy_logits, tokens, 2, noise, mask_id=MASK).mean(-1)
    error = (means.mean() - exact_elbo(toy_logits, TOKENS, 2, mask_id=MASK)[0]).abs()
    # the floor of the continuous design shifts t by at most 1e-3, which moves the mean by less than `slack`
    assert error < 5 * means.std() / repetitions**0.5 + slack


def test_stratified_counts_by_hand():
    # L = 8, n = 4: k_j = ((k0 + 2 j - 1) mod 8) + 1, so the four counts of a row are k0, k0+2, k0+4, k0+6 on
    # the circle
    noise = count_noise(torch.ones(200, 8, dtype=torch.bool), 4, torch.Generator().manual_seed(0))
    counts = noise.masks.sum(-1)
    k0 = counts[:, :1]
    assert_close(counts, (k0 + torch.tensor([0, 2, 4, 6]) - 1) % 8 + 1)
    assert set(k0.flatten().tolist()) == set(range(1, 9))
    assert_close(noise.weights, 8 / counts)


def test_stratified_counts_round_halves_up_so_that_each_is_uniform():
    # L = 3, n = 2: j L / n = 1.5. Half to even would give k_1 = 2, 1, 1 for k0 = 1, 2, 3.
    noise = count_noise(torch.ones(300, 3, dtype=torch.bool), 2, torch.Generator().manual_seed(0))
    first, second = noise.masks.sum(-1).unbind(1)
    assert {(a, b) for a, b in zip(first.tolist(), second.tolist(), strict=True)} == {(1, 3), (2, 1), (3, 2)}


def test_count_masks_are_uniform_subsets():
    noise = count_noise(torch.ones(6000, 3, dtype=torch.bool), 1, torch.Generator().manual_seed(0))
    subsets, counts = noise.masks[:, 0].int().unique(dim=0, return_counts=True)
    for subset, count in zip(subsets.tolist(), counts.tolist(), strict=True):
        share = 1 / 3 / comb(3, sum(subset))
        assert abs(count / 6000 - share) < 5 * (share * (1 - share) / 6000) ** 0.5, subset


def test_complementary_pairs_are_unbiased_by_enumeration():
    length, total = 3, 0.0
    for k in range(length + 1):
        for subset in combinations(range(length), k):
            mask = torch.zeros(1, 2, length, dtype=torch.bool)
            mask[0, 0, list(subset)] = True
            mask[0, 1] = ~mask[0, 0]
            weights = torch.tensor(
                [[(length + 1) / k if k else 0.0, (length + 1) / (length - k) if k < length else 0.0]]
            )
            terms = elbo_terms(toy_logits, TOKENS, 2, Noise(mask, weights.double()), mask_id=MASK)
            total += terms.mean().item() / (length + 1) / comb(length, k)
    assert_close(total, -5.626143501118402, rtol=1e-6, atol=0)
    # and the sampler draws exactly such pairs
    noise = sample_noise("complementary", (500, 3), 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(noise.masks[:, 0], ~noise.masks[:, 1])
    hidden = noise.masks.sum(-1)
    assert_close(noise.weights, torch.where(hidden > 0, 4 / hidden, 0.0))
    assert set(hidden[:, 0].tolist()) == {0, 1, 2, 3}


def test_coupled_value_of_a_token_by_hand():
    noise = sample_noise("coupled", (2, 3), 3, generator=torch.Generator().manual_seed(3))
    full, hidden, other = noise.masks.unbind(1)
    assert full.all()
    assert torch.equal(hidden, ~other)
    tokens = TOKENS.expand(2, -1)
    passes = [masked_logprobs(toy_logits, tokens, 2, noise.passes(j, j + 1), mask_id=MASK) for j in range(3)]
    value = torch.stack(passes).mean(0)
    plain = [masked_logprobs(toy_logits, tokens, 2, Noise(m[:, None], torch.ones(2, 1)), mask_id=MASK)
             for m in (full, hidden, other)]  # fmt: skip
    t = 1.5 / noise.weights[:, 1:2]
    assert ((t > 0.2) & (t < 0.8)).all()
    by_hand = (plain[0] + torch.where(hidden, plain[1] / t, plain[2] / (1 - t))) / 2
    assert_close(value, by_hand.to(value.dtype), rtol=1e-5, atol=1e-6)


def test_bernoulli_time_has_a_floor_and_an_empty_mask_counts_as_zero():
    noise = sample_noise("bernoulli", (4000, 2), 1, generator=torch.Generator().manual_seed(0), floor=0.1)
    assert noise.weights.max() <= 10
    assert noise.weights.min() >= 1
    empty = ~noise.masks.any(-1).squeeze(1)
    assert empty.any()
    terms = elbo_terms(toy_logits, TOKENS[:, :4].expand(4000, -1), 2, noise, mask_id=MASK)
    assert (terms[empty] == 0).all()


@pytest.mark.parametrize("design", sorted(NOISE))
def test_noise_stays_off_padding_and_empty_rows(design):
    scored = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]]).bool()
    noise = sample_noise(design, scored, 6, generator=torch.Generator().manual_seed(0))
    assert noise.masks.shape == (4, 6, 4)
    assert not (noise.masks & ~scored[:, None]).any()
    assert torch.isfinite(noise.weights).all()
    tokens = torch.randint(0, 5, (4, 6))
    terms = elbo_terms(toy_logits, tokens, 2, noise, mask_id=MASK)
    assert (terms[2] == 0).all()
    assert (terms <= 0).all()


@pytest.mark.parametrize("design", sorted(NOISE))
def test_noise_is_private_and_repeatable(design):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    draws = [sample_noise(design, (3, 5), 6, generator=torch.Generator().manual_seed(4)) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(draws[0].masks, draws[1].masks)
    assert torch.equal(draws[0].weights, draws[1].weights)


def test_each_row_may_have_its_own_prompt_length():
    # the same completion behind prompts of 1 and 2 tokens equals two separate calls
    rows = [torch.tensor([[3, 0, 2, 4]]), torch.tensor([[1, 3, 0, 2, 4]])]
    masks = torch.tensor([[[1, 0, 1], [0, 1, 1]]]).bool()
    noise = Noise(masks, torch.tensor([[1.5, 2.0]], dtype=torch.float64))
    apart = torch.cat([elbo_terms(toy_logits, row, row.shape[1] - 3, noise, mask_id=MASK) for row in rows])

    def padded(ids):  # hides the pad of row 0 from the toy, which has no attention mask
        short = torch.cat([toy_logits(ids[:1, :4]), torch.zeros(1, 1, 5, dtype=torch.float64)], dim=1)
        return torch.cat([short, toy_logits(ids[1:])])

    tokens = torch.cat([torch.nn.functional.pad(rows[0], (0, 1)), rows[1]])
    both = Noise(masks.expand(2, -1, -1), noise.weights.expand(2, -1))
    together = elbo_terms(padded, tokens, torch.tensor([1, 2]), both, mask_id=MASK)
    assert_close(together, apart, rtol=1e-12, atol=0)
    assert_close(
        exact_elbo(toy_logits, TOKENS.expand(2, -1), torch.tensor([2, 3]), mask_id=MASK)[0],
        exact_elbo(toy_logits, TOKENS, 2, mask_id=MASK)[0],
    )


def test_a_mask_id_that_stands_in_the_text_is_not_taken_for_a_hidden_token():
    tokens = torch.tensor([[MASK, 3, 0, 2, 4]])
    noise = Noise(torch.tensor([[[1, 0, 0]]]).bool(), torch.ones(1, 1, dtype=torch.float64))
    seen = []
    elbo_terms(lambda ids: seen.append(ids) or toy_logits(ids), tokens, 2, noise, mask_id=MASK)
    assert seen[0].tolist() == [[MASK, 3, MASK, 2, 4]]


def test_hidden_prompt_tokens_change_the_context_and_are_not_scored():
    prompt = torch.tensor([[[1, 0]]]).bool()
    noise = Noise(torch.tensor([[[1, 0, 0]]]).bool(), torch.ones(1, 1, dtype=torch.float64), prompt)
    term = elbo_terms(toy_logits, TOKENS, 2, noise, mask_id=MASK)
    by_hand = token_logprobs(toy_logits(torch.tensor([[MASK, 3, MASK, 2, 4]])), TOKENS)[:, 2]
    assert_close(term[0], by_hand, rtol=1e-12, atol=0)


def test_prompt_tokens_are_hidden_at_their_share_and_padding_never():
    present = torch.tensor([[0, 1, 1, 1]]).bool().expand(500, -1)
    noise = sample_noise("full", (500, 3), 4)
    hidden = hide_prompt(noise, present, 0.15, torch.Generator().manual_seed(0)).prompt_masks
    assert hidden.shape == (500, 4, 4)
    assert not hidden[..., 0].any()
    assert abs(hidden[..., 1:].float().mean() - 0.15) < 5 * (0.15 * 0.85 / 6000) ** 0.5


def test_log_probs_of_bfloat16_logits_are_float32():
    logits = torch.randn(1, 3, 50).bfloat16()
    tokens = torch.tensor([[4, 7, 9]])
    expected = logits.float().log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)
    assert_close(token_logprobs(logits, tokens), expected)


@pytest.mark.parametrize(
    ("design", "n", "message"),
    [("gauss", 1, "no noise design"), ("count", 0, "at least one"), ("coupled", 4, "groups of 3"),
     ("complementary", 3, "groups of 2")],
)  # fmt: skip
def test_refusals(design, n, message):
    with pytest.raises(ValueError, match=message):
        sample_noise(design, (1, 3), n)


def test_enumeration_has_a_limit():
    with pytest.raises(ValueError, match="1 to 12"):
        exact_elbo(toy_logits, torch.zeros(1, 20, dtype=torch.long), 2, mask_id=MASK)


def test_joint_predictor_is_the_exact_conditional():
    # guards the fixture itself: the predictor's p(y_0 | y_1) equals the joint's
    joint, logits = random_joint(2, 2, seed=1)
    for first, second in product(range(2), repeat=2):
        value = logits(torch.tensor([[0, 2, second]])).log_softmax(-1)[0, 1, first]
        assert_close(value, (joint[first, second] / joint[:, second].sum()).log())
