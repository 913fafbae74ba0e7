"""Prompts read once for their rows and products with packed weights: faster, and the same log-probs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from rollout_fakes import EOS, PROMPTS, logprobs_of
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from posttrain.rollout import packed_products as packing
from posttrain.rollout import shared_prompts as sharing
from posttrain.rollout.base import Sampling
from posttrain.rollout.shared_prompts import SharedPrompts
from posttrain.rollout.transformers_engine import TransformersEngine

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256,
}  # fmt: skip
ENDS_OFTEN = Sampling(max_new_tokens=20, n=5, seed=4, stop_token_ids=(EOS, 30, 31, 32, 33))


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Both shortcuts at any size; how often attention went through shared prompts."""
    monkeypatch.setattr(sharing, "_WORTH", 0)
    monkeypatch.setattr(packing, "_LEAST_WEIGHTS", 0)
    calls: list[int] = []
    inner = SharedPrompts.attend

    def counted(self: SharedPrompts, layer: int, *parts: torch.Tensor, **options: object) -> torch.Tensor:
        calls.append(layer)
        return inner(self, layer, *parts, **options)

    monkeypatch.setattr(SharedPrompts, "attend", counted)
    return calls


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, attn_implementation="sdpa")).eval()


def qwen3() -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    return Qwen3ForCausalLM(Qwen3Config(**SIZES, tie_word_embeddings=True, attn_implementation="sdpa")).eval()


def with_adapter() -> torch.nn.Module:
    model = get_peft_model(llama(), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return model.eval()


@pytest.mark.parametrize("make", [llama, qwen3, with_adapter])
def test_logprobs_are_those_of_a_plain_forward(make, taken: list[int]) -> None:
    model = make()
    assert len({len(prompt) for prompt in PROMPTS}) > 1  # so that prompts are padded
    found = TransformersEngine.of(model, pad_token_id=0).generate(PROMPTS, ENDS_OFTEN)
    assert {len(one.token_ids) for one in found} != {
        20
    }  # some end early: rows leave, whole groups among them
    assert set(taken) == {0, 1}
    for i, one in enumerate(found):
        want = logprobs_of(model, PROMPTS[i // 5], one.token_ids)
        torch.testing.assert_close(torch.tensor(one.logprobs), want, atol=2e-5, rtol=0)


def test_rows_of_a_prompt_need_not_stand_together(taken: list[int]) -> None:
    model = llama()
    mixed = [PROMPTS[0], PROMPTS[1], PROMPTS[0], PROMPTS[1], PROMPTS[0]]
    found = TransformersEngine.of(model, pad_token_id=0).generate(mixed, Sampling(max_new_tokens=9, seed=1))
    assert taken
    for prompt, one in zip(mixed, found, strict=True):
        want = logprobs_of(model, prompt, one.token_ids)
        torch.testing.assert_close(torch.tensor(one.logprobs), want, atol=2e-5, rtol=0)


def test_the_model_is_left_as_it_was(taken: list[int]) -> None:
    model = llama()
    engine = TransformersEngine.of(model, pad_token_id=0)
    ids = torch.tensor([PROMPTS[0]])
    before = model(ids).logits
    engine.generate(PROMPTS, ENDS_OFTEN)
    assert taken
    assert model.config._attn_implementation == "sdpa"
    assert not any("forward" in vars(module) for module in model.modules())
    assert torch.equal(model(ids).logits, before)


def test_new_weights_are_packed_anew(taken: list[int]) -> None:
    model = llama()
    engine = TransformersEngine.of(model, pad_token_id=0)
    engine.generate(PROMPTS, ENDS_OFTEN)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.3)
    (first, *_) = engine.generate(PROMPTS, ENDS_OFTEN)
    want = logprobs_of(model, PROMPTS[0], first.token_ids)
    torch.testing.assert_close(torch.tensor(first.logprobs), want, atol=2e-5, rtol=0)


def test_attention_that_is_not_plain_stays_the_models(taken: list[int]) -> None:
    torch.manual_seed(0)
    config = Gemma2Config(**SIZES, sliding_window=8, attn_implementation="eager")
    model = Gemma2ForCausalLM(config).eval()
    found = TransformersEngine.of(model, pad_token_id=0).generate(PROMPTS, ENDS_OFTEN)
    assert not taken
    want = logprobs_of(model, PROMPTS[0], found[0].token_ids)
    torch.testing.assert_close(torch.tensor(found[0].logprobs), want, atol=2e-5, rtol=0)


def test_a_packed_product_is_the_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_LEAST_WEIGHTS", 0)
    layer = torch.nn.Linear(33, 57)
    model = torch.nn.Sequential(layer)
    rows = torch.randn(5, 2, 33)
    with torch.no_grad():
        want, alone = layer(rows), layer(rows[:1, :1])
        with packing.packed_products(model, packing.WORTH_TOKENS - 1):
            assert "forward" not in vars(layer)
        with packing.packed_products(model, packing.WORTH_TOKENS):
            assert "forward" in vars(layer)
            torch.testing.assert_close(model(rows), want, atol=1e-6, rtol=1e-5)
            assert torch.equal(model(rows[:1, :1]), alone)
    assert "forward" not in vars(layer)


def test_a_product_in_bfloat16_is_autocasts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a rounding of the output; where the processor has no such products nothing is packed."""
    monkeypatch.setattr(packing, "_LEAST_WEIGHTS", 0)
    torch.manual_seed(0)
    layer = torch.nn.Linear(33, 57)
    rows = torch.randn(5, 2, 33)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        want = layer(rows)
    with torch.no_grad(), packing.packed_products(layer, packing.WORTH_TOKENS, torch.bfloat16):
        packed = "forward" in vars(layer)
        assert packed == torch.ops.mkldnn._is_mkldnn_bf16_supported()
        assert torch.is_autocast_enabled("cpu") == packed
        if packed:
            found = layer(rows)
            assert found.dtype is torch.bfloat16
            torch.testing.assert_close(found, want, atol=1e-2, rtol=1e-2)
    assert not torch.is_autocast_enabled("cpu")


def test_a_model_under_autocast_is_sampled_in_its_own_products(taken: list[int]) -> None:
    """As accelerate wraps it; log-probs are those of the wrapped forward pass to bfloat16."""
    model = llama()
    wrapped = type(model).forward

    def narrow(*args: object, **options: object) -> object:
        with torch.autocast("cpu", torch.bfloat16):
            return wrapped(model, *args, **options)

    model.forward = narrow
    engine = TransformersEngine.of(model, pad_token_id=0, products=torch.bfloat16)
    for prompt, found in zip(PROMPTS, engine.generate(PROMPTS, replace(ENDS_OFTEN, n=1)), strict=True):
        want = logprobs_of(model, prompt, found.token_ids)
        torch.testing.assert_close(torch.tensor(found.logprobs), want.float(), atol=3e-2, rtol=0)
