"""The engine around the model in training: its log-probs are the model's, its samples are what the options say."""

from __future__ import annotations

import threading

import pytest
import torch
from rollout_fakes import EOS, PROMPTS, logprobs_of, small_model

from posttrain.rollout.base import Sampling
from posttrain.rollout.sampler import Sampler, draw
from posttrain.rollout.transformers_engine import TransformersEngine


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture
def engine(model) -> TransformersEngine:
    return TransformersEngine.of(model, pad_token_id=0)


def test_logprobs_are_those_of_a_plain_forward(model, engine: TransformersEngine) -> None:
    found = engine.generate(
        PROMPTS, Sampling(max_new_tokens=12, n=3, seed=4, stop_token_ids=(EOS, 30, 31, 32, 33))
    )
    assert {len(one.token_ids) for one in found} != {12}  # some end early, so rows leave the batch
    for i, one in enumerate(found):
        want = logprobs_of(model, PROMPTS[i // 3], one.token_ids)
        torch.testing.assert_close(torch.tensor(one.logprobs), want, atol=2e-5, rtol=0)


def test_greedy_is_the_likeliest_token(model, engine: TransformersEngine) -> None:
    (found,) = engine.generate([PROMPTS[0]], Sampling(temperature=0.0, max_new_tokens=5))
    ids = list(PROMPTS[0])
    with torch.no_grad():
        for token in found.token_ids:
            assert token == model(torch.tensor([ids])).logits[0, -1].argmax()
            ids.append(token)


def test_a_completion_does_not_depend_on_its_neighbours(engine: TransformersEngine) -> None:
    together = engine.generate(PROMPTS, Sampling(max_new_tokens=8, n=2, seed=100))
    for i in (0, 3, 6):
        (alone,) = engine.generate([PROMPTS[i // 2]], Sampling(max_new_tokens=8, seed=100 + i))
        assert alone.token_ids == together[i].token_ids


def test_rows_in_parts_are_the_same_rows(model, engine: TransformersEngine) -> None:
    sampling = Sampling(max_new_tokens=6, n=2, seed=1)
    parts = TransformersEngine.of(model, pad_token_id=0, max_rows=3)
    assert [one.token_ids for one in parts.generate(PROMPTS, sampling)] == [
        one.token_ids for one in engine.generate(PROMPTS, sampling)
    ]


def test_a_stop_token_ends_and_stays(engine: TransformersEngine) -> None:
    free = engine.generate([PROMPTS[1]], Sampling(max_new_tokens=10, seed=2))[0]
    stop = free.token_ids[4]
    cut = engine.generate([PROMPTS[1]], Sampling(max_new_tokens=10, seed=2, stop_token_ids=(stop,)))[0]
    where = free.token_ids.index(stop)
    assert (cut.token_ids, cut.finish) == (free.token_ids[: where + 1], "stop")
    assert (free.finish, len(free.token_ids)) == ("length", 10)


def test_limits_are_each_rows_own(engine: TransformersEngine) -> None:
    found = engine.generate(
        PROMPTS[:2], [Sampling(max_new_tokens=3, seed=0), Sampling(max_new_tokens=7, seed=0)]
    )
    assert [len(one.token_ids) for one in found] == [3, 7]


def test_the_draw_chooses_by_cumulative_probability() -> None:
    weights = 2 * torch.tensor([[0.2, 0.0, 0.5, 0.3]])
    draws = torch.tensor([0.0, 0.19, 0.21, 0.69, 0.71, 0.999999], dtype=torch.float64)
    tokens, total = draw(weights.expand(6, -1), draws)
    assert tokens.tolist() == [0, 0, 2, 2, 3, 3]
    assert total.tolist() == pytest.approx([2.0] * 6)


@pytest.mark.parametrize("vocabulary", [3, 256, 257, 1000, 32768])
def test_two_steps_find_the_token_that_one_would(vocabulary: int) -> None:
    torch.manual_seed(0)
    weights = torch.rand(200, vocabulary).pow(8)
    weights[:, 1::3] = 0.0
    draws = torch.rand(200, dtype=torch.float64)
    cumulative = weights.double().cumsum(1)
    found, total = draw(weights, draws)
    exact = torch.searchsorted(cumulative, (draws * total)[:, None], right=True)[:, 0]
    assert torch.equal(found, exact)
    assert bool((weights.gather(1, found[:, None]) > 0).all())


def test_a_draw_next_to_one_never_falls_off_the_end() -> None:
    weights = torch.rand(50, 700)
    weights[:, 300:] = 0.0
    found, _ = draw(weights, torch.full((50,), 1 - 2.0**-53, dtype=torch.float64))
    assert found.max() == 299


@pytest.mark.parametrize("options", [{}, {"top_k": 6}, {"top_p": 0.7}, {"min_p": 0.1}])
def test_frequencies_are_the_distributions(options: dict) -> None:
    """Chi-square of 20,000 draws over 600 tokens in three blocks; the bound is passed once in a thousand seeds."""
    torch.manual_seed(0)
    logits = torch.randn(1, 600) * 2
    sampler = Sampler([Sampling(**options)], torch.device("cpu"))
    count = 20_000
    draws = torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    zeros = torch.zeros(count, dtype=torch.long)
    tokens, _ = sampler.choose(logits.expand(count, -1), zeros, draws, None)
    shaped = sampler.truncate(logits, torch.tensor([0])) if sampler.shapes else logits
    expected = shaped.softmax(-1)[0].double() * count
    often = expected >= 5
    seen = torch.bincount(tokens, minlength=600).double()
    assert not seen[expected == 0].any()
    chi_square = ((seen - expected)[often].square() / expected[often]).sum()
    degrees = int(often.sum()) - 1
    assert chi_square < degrees + 3.1 * (2 * degrees) ** 0.5 + 7


def test_greedy_and_sampled_rows_go_together() -> None:
    sampler = Sampler([Sampling(temperature=0.0), Sampling(temperature=1.0)], torch.device("cpu"))
    logits = torch.tensor([[0.0, 2.0, 1.0]]).expand(2, -1)
    tokens, logprobs = sampler.choose(logits, torch.arange(2), torch.tensor([0.99, 0.99]).double(), None)
    assert tokens.tolist() == [1, 2]
    torch.testing.assert_close(logprobs, logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0])


def test_greedy_is_what_generate_gives(model, engine: TransformersEngine) -> None:
    found = engine.generate(PROMPTS, Sampling(temperature=0.0, max_new_tokens=9))
    for prompt, one in zip(PROMPTS, found, strict=True):
        ids = torch.tensor([prompt])
        wanted = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=9, eos_token_id=None
        )
        assert one.token_ids == wanted[0, len(prompt) :].tolist()


def test_a_cache_grows_where_its_room_has_run_out() -> None:
    from transformers.cache_utils import DynamicCache

    from posttrain.rollout.preallocated import preallocated

    cache = DynamicCache()
    cache.update(torch.ones(1, 2, 3, 4), torch.ones(1, 2, 3, 4), 0)
    grown = preallocated(cache, torch.tensor([0, 0]), 4)
    keys, _ = grown.update(torch.full((2, 2, 1, 4), 2.0), torch.ones(2, 2, 1, 4), 0)
    assert keys[1, 0, :, 0].tolist() == [1, 1, 1, 2]
    keys, _ = grown.update(torch.full((2, 2, 1, 4), 3.0), torch.ones(2, 2, 1, 4), 0)
    grown.batch_select_indices(torch.tensor([1]))
    keys, _ = grown.update(torch.full((1, 2, 1, 4), 4.0), torch.ones(1, 2, 1, 4), 0)
    assert keys[0, 1, :, 0].tolist() == [1, 1, 1, 2, 3, 4]


# probabilities .4 .3 .2 .1: what each option leaves, worked by hand
@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"top_k": 2}, [0.4, 0.3, 0, 0]),
        ({"top_p": 0.5}, [0.4, 0.3, 0, 0]),  # .4 alone is below .5, so .3 comes in and completes it
        ({"top_p": 0.4}, [0.4, 0, 0, 0]),  # .4 reaches it
        ({"min_p": 0.5}, [0.4, 0.3, 0.2, 0]),  # floor .5 * .4 = .2
        ({"min_p": 0.6, "top_k": 1}, [0.4, 0, 0, 0]),
        ({"top_k": 3, "top_p": 0.75}, [0.4, 0.3, 0, 0]),  # of .9 left: .444 + .333 = .778
        ({}, [0.4, 0.3, 0.2, 0.1]),
    ],
)
def test_truncation_by_hand(options: dict, kept: list[float]) -> None:
    sampler = Sampler([Sampling(**options)], torch.device("cpu"))
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log() + 3.0
    shaped = sampler.truncate(logits, torch.tensor([0])) if sampler.shapes else logits
    want = torch.tensor([kept])
    torch.testing.assert_close(shaped.softmax(-1), want / want.sum())


def test_temperature_and_penalty_by_hand() -> None:
    sampler = Sampler([Sampling(temperature=0.5, repetition_penalty=2.0)], torch.device("cpu"))
    seen = torch.tensor([[True, True, False]])
    # positive logits are halved, negative doubled; then divided by .5: [2, -4, 1] -> [1, -8, 1] -> [2, -16, 2]
    _, logprob = sampler.choose(
        torch.tensor([[2.0, -4.0, 1.0]]), torch.tensor([0]), torch.tensor([0.9], dtype=torch.float64), seen
    )
    torch.testing.assert_close(logprob, torch.tensor([[2.0, -16.0, 2.0]]).log_softmax(-1)[:, 2])


def test_it_leaves_the_model_as_it_was(model, engine: TransformersEngine) -> None:
    model.train()
    model.lm_head.eval()
    before = torch.random.get_rng_state()
    engine.generate(PROMPTS[:1], Sampling(max_new_tokens=2, seed=0))
    assert model.training
    assert model.model.layers[0].training
    assert not model.lm_head.training
    assert torch.equal(torch.random.get_rng_state(), before)
    model.eval()


def test_a_rank_that_is_done_keeps_step_with_the_others(model) -> None:
    """Sharded weights make each forward a collective: a rank with little to write must call the model as often."""
    ranks = {
        "short": (PROMPTS[:1], Sampling(max_new_tokens=2, seed=0)),
        "long": (PROMPTS, Sampling(max_new_tokens=6)),
    }
    forwards = dict.fromkeys(ranks, 0)
    flags: dict[str, bool] = {}
    meet = threading.Barrier(len(ranks), timeout=20)
    found = {}

    def count(*_) -> None:
        forwards[threading.current_thread().name] += 1

    def any_rank(here: bool) -> bool:
        flags[threading.current_thread().name] = here
        meet.wait()
        anywhere = any(flags.values())
        meet.wait()
        return anywhere

    def run(name: str) -> None:
        engine = TransformersEngine.of(model, pad_token_id=0, any_rank=any_rank, max_rows=2)
        found[name] = engine.generate(*ranks[name])

    hook = model.register_forward_pre_hook(count)
    threads = [threading.Thread(target=run, args=(name,), name=name) for name in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    hook.remove()
    assert forwards["short"] == forwards["long"] == 12  # two parts of a prompt forward and five more
    assert [len(one.token_ids) for one in found["short"]] == [2]
    assert [len(one.token_ids) for one in found["long"]] == [6] * 4
