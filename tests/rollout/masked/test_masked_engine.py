"""rollout/masked_diffusion: order of revealing, temperature, guidance, end tokens, ragged rows, refusals."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from posttrain.rollout.base import Sampling
from posttrain.rollout.masked.block_reader import whole_canvas
from posttrain.rollout.masked.masked_engine import MaskedDiffusionEngine, fill
from posttrain.rollout.masked.predictor import MaskPredictor, scratch_mask_model
from posttrain.rollout.masked.sampler_options import DiffusionSampling, schedule

MASK = 4


def table(rows):
    """A predictor that does not look at its input: one row of logits a column."""
    logits = torch.tensor(rows, dtype=torch.float32)
    return lambda ids: logits.expand(ids.shape[0], -1, -1).clone()


def run(logits_fn, width, *, rows=1, start=0, is_open=None, tokens=None, temperature=0.0, seed=0, **options):
    is_open = torch.ones(rows, width, dtype=torch.bool) if is_open is None else is_open
    is_open[:, :start] = False
    tokens = torch.zeros(rows, width, dtype=torch.long) if tokens is None else tokens
    ends = options.pop("end_ids", ())
    prompt = options.pop("prompt", None)
    return fill(
        lambda: whole_canvas(logits_fn), tokens, is_open, start,
        mask_id=MASK, options=DiffusionSampling(**options), temperature=torch.full((len(tokens),), temperature),
        generators=[torch.Generator().manual_seed(seed + i) for i in range(len(tokens))], end_ids=ends, prompt=prompt,
    )  # fmt: skip


# logits of five columns over four tokens and the mask; the mask is always the likeliest
SURE = [[0, 3, 0, 0, 9], [0, 0, 1, 0, 9], [5, 0, 0, 0, 9], [0, 0, 0, 2, 9], [0, 4, 0, 0, 9]]


def test_most_confident_first_by_hand():
    filled = run(table(SURE), 5)
    assert filled.tokens.tolist() == [[1, 2, 0, 3, 1]]
    assert filled.order.tolist() == [[2, 4, 0, 3, 1]]
    expected = torch.tensor(SURE)[..., :4].float().log_softmax(-1).amax(-1)
    assert_close(filled.logprobs, expected.unsqueeze(0))


def test_fewer_passes_reveal_more_at_once_the_early_ones_most():
    # 5 tokens in 3 passes: 2, 2, 1
    assert run(table(SURE), 5, diffusion_steps=3).order.tolist() == [[1, 2, 0, 1, 0]]


def test_blocks_are_filled_left_to_right():
    filled = run(table([*SURE, SURE[0]]), 6, diffusion_steps=6, block_length=3)
    assert filled.order.tolist() == [[1, 2, 0, 5, 3, 4]]


def test_later_blocks_are_masks_while_earlier_ones_are_filled():
    seen = []

    def spy(ids):
        seen.append(ids.clone())
        return table([*SURE, SURE[0]])(ids)

    run(spy, 6, diffusion_steps=2, block_length=3)
    assert seen[0].tolist() == [[MASK] * 6]
    assert seen[1][:, 3:].tolist() == [[MASK] * 3]
    assert (seen[1][:, :3] != MASK).all()


def test_each_row_has_its_own_count():
    # row 0 has 5 open positions, row 1 has 2: in 2 passes 3 + 2 and 1 + 1; a given token never changes
    is_open = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 0, 0, 1]]).bool()
    tokens = torch.tensor([[0, 0, 0, 0, 0], [3, 0, 2, 1, 0]])
    filled = run(table(SURE), 5, is_open=is_open, tokens=tokens, diffusion_steps=2)
    assert filled.order.tolist() == [[0, 1, 0, 1, 0], [-1, 1, -1, -1, 0]]
    assert filled.tokens[1].tolist() == [3, 2, 2, 1, 1]


@pytest.mark.parametrize("remasking", ["low_confidence", "random", "entropy", "margin"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_mask_is_never_emitted_and_nothing_stays_open(remasking, temperature):
    filled = run(table(SURE), 5, rows=64, temperature=temperature, remasking=remasking, diffusion_steps=3)
    assert (filled.tokens != MASK).all()
    assert (filled.order >= 0).all()


def test_other_orders_by_hand():
    # column 0: probabilities .5 .5 0 0; column 1: .4 .2 .2 .2. Entropy .69 < 1.33, margin 0 < .2, confidence .5 > .4
    rows = torch.tensor([[0.5, 0.5, 1e-9, 1e-9, 1], [0.4, 0.2, 0.2, 0.2, 1]]).log().tolist()
    assert run(table(rows), 2, remasking="entropy").order.tolist() == [[0, 1]]
    assert run(table(rows), 2, remasking="margin").order.tolist() == [[1, 0]]
    assert run(table(rows), 2, remasking="low_confidence").order.tolist() == [[0, 1]]


def test_random_order_is_uniform():
    first = (run(table(SURE), 5, rows=2000, remasking="random").order == 0).float().mean(0)
    assert ((first - 0.2).abs() < 5 * (0.16 / 2000) ** 0.5).all()


def test_temperature_samples_the_softmax():
    rows = 4000
    logits = [[0.0, 1.0, 2.0, 0.5, 9.0]]
    filled = run(table(logits), 1, rows=rows, temperature=2.0)
    expected = (torch.tensor(logits[0][:4]) / 2).softmax(-1)
    shares = torch.bincount(filled.tokens.flatten(), minlength=5)[:4] / rows
    assert ((shares - expected).abs() < 5 * (expected * (1 - expected) / rows).sqrt()).all()
    assert_close(filled.logprobs.flatten(), expected.log()[filled.tokens.flatten()])


def test_noise_does_not_enter_the_confidence():
    # at a huge temperature tokens are uniform, but confidence is the model's: column 2 goes first exactly when the
    # first pass happens to draw its likely token, with chance 1/4
    rows = [[0.0, 0, 0, 0, 9], [0.0, 0, 0, 0, 9], [6.0, 0, 0, 0, 9]]
    filled = run(table(rows), 3, rows=400, temperature=1e4)
    first = filled.order[:, 2] == 0
    assert (filled.tokens[first, 2] == 0).all()
    assert abs(first.float().mean() - 0.25) < 5 * (0.1875 / 400) ** 0.5
    assert (run(table(rows), 3, rows=50, temperature=1e4, remasking="entropy").order[:, 2] == 0).all()


def test_guidance_by_hand():
    # conditional and unconditional logits differ by the prompt; w = 1: 2c - u
    def logits_fn(ids):
        conditional = (ids[:, :1] == 2).float()
        out = torch.zeros(ids.shape[0], 2, 5)
        out[:, 1, 0], out[:, 1, 1] = 1.0, 2.0 * conditional[:, 0]
        return out

    tokens = torch.tensor([[2, 0]])
    prompt = torch.tensor([[True, False]])
    plain = run(logits_fn, 2, start=1, tokens=tokens)
    guided = run(logits_fn, 2, start=1, tokens=tokens, cfg_scale=1.0, prompt=prompt)
    assert_close(plain.logprobs[0, 1], torch.tensor([1.0, 2.0, 0.0, 0.0]).log_softmax(-1)[1])
    assert_close(guided.logprobs[0, 1], torch.tensor([1.0, 4.0, 0.0, 0.0]).log_softmax(-1)[1])


def test_end_tokens_wait_or_never_come():
    # token 3 ends; column 0 is sure of it
    rows = [[0, 0, 0, 5, 9], [0, 1, 0, 0, 9], [0, 2, 0, 0, 9]]
    assert run(table(rows), 3, end_ids=[3]).order.tolist() == [[0, 2, 1]]
    for temperature in (0.0, 1e-3):
        last = run(table(rows), 3, end_ids=[3], end_rule="last", temperature=temperature)
        assert last.order.tolist() == [[2, 1, 0]]
        assert last.tokens.tolist() == [[3, 1, 1]]
    never = run(table(rows), 3, rows=200, end_ids=[3], end_rule="never", temperature=1.0)
    assert (never.tokens != 3).all()


def test_the_likeliest_of_equals_is_the_left_one():
    assert run(table([[0, 1, 0, 0, 9]] * 4), 4).order.tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize(
    ("options", "length", "message"),
    [
        ({"block_length": 5}, 12, "does not divide max_new_tokens 12; choose one of 1, 2, 3, 4, 6, 12"),
        (
            {"block_length": 4, "diffusion_steps": 7},
            12,
            "cannot be shared by 3 blocks; choose a multiple, such as 6",
        ),
        ({"diffusion_steps": 24}, 12, "choose at most 12"),
    ],
)
def test_impossible_schedules(options, length, message):
    with pytest.raises(ValueError, match=message):
        schedule(DiffusionSampling(**options), length)


def test_schedules():
    assert schedule(DiffusionSampling(), 12) == (12, 1, 12)
    assert schedule(DiffusionSampling(diffusion_steps=6, block_length=4), 12) == (4, 3, 2)


# The engine


@pytest.fixture
def engine(tokenizer):
    model = scratch_mask_model(tokenizer, hidden_size=16, heads=2, max_positions=32)
    predictor = MaskPredictor.of(model, tokenizer.mask_token_id)
    return MaskedDiffusionEngine.of(
        predictor, DiffusionSampling(diffusion_steps=4, block_length=4), pad_token_id=tokenizer.pad_token_id
    )


PROMPTS = [[10, 11, 12], [13], [14, 15]]


def test_greedy_is_deterministic_and_rows_do_not_see_each_other(engine):
    sampling = Sampling(temperature=0.0, max_new_tokens=8)
    together = engine.generate(PROMPTS, sampling)
    assert together == engine.generate(PROMPTS, sampling)
    for prompt, completion in zip(PROMPTS, together, strict=True):
        assert engine.generate([prompt], sampling)[0].token_ids == completion.token_ids


def test_a_seed_fixes_a_row_whatever_its_neighbours(engine):
    sampling = Sampling(temperature=1.0, max_new_tokens=8, seed=7, n=2)
    before = torch.get_rng_state()
    six = engine.generate(PROMPTS, sampling)
    assert torch.equal(torch.get_rng_state(), before)
    assert len(six) == 6
    assert len({tuple(c.token_ids) for c in six}) > 1
    alone = engine.generate([PROMPTS[1]], Sampling(temperature=1.0, max_new_tokens=8, seed=10))
    assert alone[0].token_ids == six[3].token_ids


def test_completions_end_behind_the_first_stop_token(engine):
    free = engine.generate([PROMPTS[0]], Sampling(temperature=0.0, max_new_tokens=8))[0]
    assert free.finish == "length"
    assert len(free.token_ids) == len(free.logprobs) == 8
    stop = free.token_ids[2]
    cut = engine.generate([PROMPTS[0]], Sampling(temperature=0.0, max_new_tokens=8, stop_token_ids=(stop,)))[
        0
    ]
    first = free.token_ids.index(stop)
    assert cut.token_ids == free.token_ids[: first + 1]
    assert cut.finish == "stop"
    assert cut.versions == [0] * len(cut.token_ids)


def test_rows_beyond_the_limit_go_in_parts(engine, tokenizer):
    import dataclasses

    sampling = Sampling(temperature=1.0, max_new_tokens=8, seed=3)
    whole = engine.generate(PROMPTS, sampling)
    engine.options = dataclasses.replace(engine.options, sampler_rows=2)
    assert [c.token_ids for c in engine.generate(PROMPTS, sampling)] == [c.token_ids for c in whole]


def test_the_trace_is_the_order_of_revealing(engine):
    sampling = Sampling(temperature=0.0, max_new_tokens=8)
    traced = engine.generate(PROMPTS, sampling, return_trace=True)
    assert [completion for completion, _ in traced] == engine.generate(PROMPTS, sampling)
    (_, order), *_ = traced
    # two blocks of four, two passes each, two tokens a pass
    assert sorted(order[:4]) == [0, 0, 1, 1]
    assert sorted(order[4:]) == [2, 2, 3, 3]


def test_dropout_is_off_while_sampling_and_the_mode_returns(tokenizer, engine):
    model = scratch_mask_model(tokenizer, hidden_size=16, heads=2)
    model.train()
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    own = MaskedDiffusionEngine.of(MaskPredictor.of(model, tokenizer.mask_token_id), pad_token_id=0)
    sampling = Sampling(temperature=0.0, max_new_tokens=8)
    assert own.generate(PROMPTS, sampling) == own.generate(PROMPTS, sampling)
    assert model.training


def test_what_it_lacks_is_refused(engine):
    with pytest.raises(ValueError, match="no top_k, top_p"):
        engine.generate(PROMPTS, Sampling(top_p=0.9, top_k=5))
    with pytest.raises(ValueError, match="one length"):
        engine.generate(PROMPTS[:2], [Sampling(max_new_tokens=8), Sampling(max_new_tokens=4)])
