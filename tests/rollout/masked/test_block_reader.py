"""Keys and values kept within a block, and passes decided by confidence."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.testing import assert_close
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM

from posttrain.rollout.base import Sampling
from posttrain.rollout.masked.block_reader import CachedReader, readers_of, whole_canvas
from posttrain.rollout.masked.masked_engine import MaskedDiffusionEngine, fill
from posttrain.rollout.masked.predictor import MaskPredictor
from posttrain.rollout.masked.sampler_options import DiffusionSampling, cache_fault, schedule

MASK, END = 4, 1
PROMPTS = [[5, 6, 7, 8, 9], [10, 11], [5, 6, 7, 8, 9]]


def predictor(layers: int, shift: bool = False) -> MaskPredictor:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=24, hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.3,
    )  # fmt: skip
    config.is_causal = False
    config.logit_shift = shift
    return MaskPredictor.of(LlamaForCausalLM(config).eval(), MASK)


def canvas() -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts of unlike length on the left, eight masks behind them; and what is no padding."""
    ids = torch.full((3, 13), MASK)
    present = torch.ones_like(ids)
    for row, prompt in enumerate(PROMPTS):
        ids[row, :5] = torch.tensor([0] * (5 - len(prompt)) + prompt)
        present[row, : 5 - len(prompt)] = 0
    return ids, present


@pytest.mark.parametrize("kind", ["prefix", "dual"])
@pytest.mark.parametrize("shift", [False, True])
@torch.no_grad()
def test_one_layers_keys_depend_on_their_own_token_so_nothing_is_lost(kind, shift) -> None:
    model = predictor(1, shift)
    ids, present = canvas()
    cached, plain = CachedReader(model, present, kind), whole_canvas(model.logits_fn(present))
    for columns in (slice(5, 9), slice(9, 13)):
        for i in range(3):  # a token more is revealed in every pass
            assert_close(cached(ids, columns, i == 0), plain(ids, columns, i == 0), atol=2e-6, rtol=1e-5)
            ids[:, columns.start + i] = torch.tensor([12 + i, 13, 14])
        ids[:, columns.start + 3] = 15


@pytest.mark.parametrize("kind", ["prefix", "dual"])
@pytest.mark.parametrize("shift", [False, True])
@torch.no_grad()
def test_of_an_unchanged_canvas_every_pass_reads_the_same(kind, shift) -> None:
    model = predictor(3, shift)
    ids, present = canvas()
    read = CachedReader(model, present, kind)
    for columns in (slice(5, 9), slice(9, 13)):
        want = model.logits(ids, present)[:, columns]
        for i in range(3):
            assert_close(read(ids, columns, i == 0), want, atol=2e-6, rtol=1e-5)


@torch.no_grad()
def test_deeper_layers_go_on_with_what_they_saw_at_the_blocks_start() -> None:
    model = predictor(3)
    ids, present = canvas()
    changed = ids.clone()
    changed[:, 5] = 13
    found = {}
    for kind in ("prefix", "dual"):
        read = CachedReader(model, present, kind)
        read(ids, slice(5, 9), True)
        found[kind] = read(changed, slice(5, 9), False)
    want = model.logits(changed, present)[:, 5:9]
    assert not torch.allclose(found["dual"], want, atol=1e-4)
    assert not torch.allclose(found["dual"], found["prefix"], atol=1e-4)


def test_a_first_column_with_nothing_before_it_predicts_itself() -> None:
    model = predictor(2, shift=True)
    ids = torch.full((1, 6), MASK)
    present = torch.ones_like(ids)
    with torch.no_grad():
        for kind in ("prefix", "dual"):
            read = CachedReader(model, present, kind)
            want = model.logits(ids, present)[:, :3]
            assert_close(read(ids, slice(0, 3), True), want, atol=2e-6, rtol=1e-5)
            assert_close(read(ids, slice(0, 3), False), want, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "options", [{"cache": "prefix"}, {"cache": "dual"}, {"cache": "dual", "cfg_scale": 0.5}]
)
def test_one_layer_generates_the_same_with_and_without(options) -> None:
    sampling = Sampling(max_new_tokens=8, n=2, seed=5, temperature=1.0, stop_token_ids=(END,))
    shared = {"block_length": 4, "diffusion_steps": 8, "cfg_scale": options.get("cfg_scale", 0.0)}
    answers = []
    for chosen in (shared, shared | options):
        engine = MaskedDiffusionEngine.of(predictor(1), DiffusionSampling(**chosen), pad_token_id=0)
        answers.append([one.token_ids for one in engine.generate(PROMPTS, sampling)])
    assert answers[0] == answers[1]


def test_an_adapter_is_read_through() -> None:
    base = predictor(1)
    adapted = get_peft_model(
        base.model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    ).eval()
    ids, present = canvas()
    with torch.no_grad():
        read = readers_of(base.with_model(adapted), present, "dual")()
        want = base.with_model(adapted).logits(ids, present)[:, 5:9]
        assert_close(read(ids, slice(5, 9), True), want, atol=2e-6, rtol=1e-5)
        assert_close(read(ids, slice(5, 9), False), want, atol=2e-6, rtol=1e-5)


def test_models_that_keep_nothing_are_refused() -> None:
    config = BertConfig(
        vocab_size=24, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4
    )
    encoder = MaskPredictor.of(BertForMaskedLM(config), MASK)
    with pytest.raises(ValueError, match="rollout.cache: dual is not possible here: BertForMaskedLM"):
        readers_of(encoder, torch.ones(1, 4), "dual")
    assert "own code" in str(cache_fault("LLaDAModelLM", own_code=True))
    assert cache_fault("LlamaForCausalLM", own_code=False) is None


# probabilities of the likeliest of two tokens in four columns
SURE = [0.95, 0.6, 0.91, 0.7]


def table(rows: list[float]):
    logits = torch.tensor([[share, 1 - share, 0, 0, 0] for share in rows]).clamp(min=1e-30).log()
    return lambda: whole_canvas(lambda ids: logits.expand(ids.shape[0], -1, -1).clone())


def filled(reader, rows: int, width: int, temperature: float = 0.0, **options):
    return fill(
        reader, torch.zeros(rows, width, dtype=torch.long), torch.ones(rows, width, dtype=torch.bool), 0,
        mask_id=MASK, options=DiffusionSampling(**options), temperature=torch.full((rows,), temperature),
        generators=[torch.Generator().manual_seed(i) for i in range(rows)],
    )  # fmt: skip


def test_all_that_are_sure_are_revealed_at_once_and_one_in_any_case() -> None:
    assert filled(table(SURE), 1, 4, confidence=0.9).order.tolist() == [[0, 2, 0, 1]]
    assert filled(table(SURE), 1, 4, confidence=0.65).order.tolist() == [[0, 1, 0, 0]]
    assert filled(table(SURE), 1, 4, confidence=1.0).order.tolist() == [[0, 3, 1, 2]]
    # the second block begins with the pass after the first one's last
    assert filled(table(SURE), 1, 4, confidence=0.9, block_length=2).order.tolist() == [[0, 1, 2, 3]]


def test_a_row_does_not_depend_on_how_long_its_neighbours_take() -> None:
    model = predictor(2)
    options = DiffusionSampling(block_length=4, confidence=0.3)
    engine = MaskedDiffusionEngine.of(model, options, pad_token_id=0)
    sampling = Sampling(max_new_tokens=16, seed=7, temperature=1.0)
    same_length = [[5, 6], [7, 8], [9, 10], [11, 12]]
    together = engine.generate(same_length, sampling, return_trace=True)
    assert len({max(order) for _, order in together}) > 1  # some take more passes than others
    for i, prompt in enumerate(same_length):
        (alone,) = engine.generate([prompt], Sampling(max_new_tokens=16, seed=7 + i, temperature=1.0))
        assert alone.token_ids == together[i][0].token_ids


def test_every_rank_makes_as_many_passes_as_the_slowest() -> None:
    passes = []

    def reader():
        inner = table(SURE)()
        return lambda tokens, columns, first: passes.append(1) or inner(tokens, columns, first)

    others = iter([True, True, True, True, True, False])
    result = fill(
        reader, torch.zeros(1, 4, dtype=torch.long), torch.ones(1, 4, dtype=torch.bool), 0,
        mask_id=MASK, options=DiffusionSampling(confidence=0.9), temperature=torch.zeros(1),
        generators=[torch.Generator()], goes_on=lambda here: here | next(others),
    )  # fmt: skip
    assert len(passes) == 5
    assert result.order.tolist() == [[0, 2, 0, 1]]


def test_what_confidence_does_not_go_with() -> None:
    assert schedule(DiffusionSampling(confidence=0.9, block_length=4), 8) == (4, 2, 4)
    with pytest.raises(ValueError, match="diffusion_steps 8 does as well"):
        schedule(DiffusionSampling(confidence=0.9, diffusion_steps=8), 8)
    with pytest.raises(ValueError, match="remasking entropy"):
        schedule(DiffusionSampling(confidence=0.9, remasking="entropy"), 8)
