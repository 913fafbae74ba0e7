"""Packed prompt groups against padded rows: the same log-probs, entropies, hidden states and gradients."""

from __future__ import annotations

import types
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from posttrain.ops.logprobs import token_entropy, token_logprobs
from posttrain.ops.scored_head import scored_tokens
from posttrain.trainers.forward.shared_attention import (
    shared_attention,
    shared_inputs,
    take_shared_rows,
    why_not_shared,
)
from posttrain.trainers.forward.shared_rows import SharedRows, share_prompts

VOCABULARY = 32
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "mistral": {"sliding_window": 5},
    "gemma3_text": {"head_dim": 8, "sliding_window": 4, "query_pre_attn_scalar": 8},
    "olmo2": {},
    "qwen3_moe": {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
}


def model_of(kind: str, **changes: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SIZES, **MODELS.get(kind, {}), **changes})
    experts = (
        {"experts_implementation": "eager"} if "moe" in kind else {}
    )  # the grouped product knows no float64
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", **experts).to(torch.float64)
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = types.MethodType(_norm, module)
    return model.eval()


def _norm(self: Any, values: Tensor) -> Tensor:
    """Root-mean-square norm in the dtype of its input: transformers' own rounds to float32 whatever comes in."""
    epsilon = vars(self).get("variance_epsilon", vars(self).get("eps"))
    weight = self.weight + 1 if type(self).__name__.startswith("Gemma") else self.weight
    return values * torch.rsqrt(values.square().mean(-1, keepdim=True) + epsilon) * weight


def ragged(
    prompts: list[int], completions: list[list[int]], *, left: bool = True
) -> tuple[Tensor, Tensor, int]:
    """Rows of prompts with these lengths, each with completions of these; padded as TRL does, or all to the right."""
    torch.manual_seed(1)
    longest, length = max(prompts), max(max(row, default=0) for row in completions)
    ids, mask = [], []
    for size, of_group in zip(prompts, completions, strict=True):
        prompt = torch.randint(1, VOCABULARY, (size,))
        for count in of_group:
            row, here = torch.zeros(longest + length, dtype=torch.long), torch.zeros(longest + length).long()
            at = longest - size if left else 0
            row[at : at + size], here[at : at + size] = prompt, 1
            row[longest : longest + count] = torch.randint(1, VOCABULARY, (count,))
            here[longest : longest + count] = 1
            ids.append(row)
            mask.append(here)
    return torch.stack(ids), torch.stack(mask), length


def padded(model: PreTrainedModel, ids: Tensor, mask: Tensor, length: int) -> dict[str, Tensor]:
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    out = model.base_model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False)
    # the last present token before a completion predicts its first one
    split = ids.size(1) - length
    columns = torch.arange(split, ids.size(1)).expand(len(ids), -1) - 1
    before = (mask[:, :split] * torch.arange(split)).amax(1)
    columns = columns.clone()
    columns[:, 0] = before
    hidden = out.last_hidden_state.gather(
        1, columns[..., None].expand(-1, -1, out.last_hidden_state.size(-1))
    )
    logits = model.lm_head(hidden)
    present = mask[:, split:].to(hidden.dtype)
    return {
        "logprobs": token_logprobs(logits, ids[:, split:]) * present,
        "entropy": token_entropy(logits) * present,
        "hidden": hidden * present[..., None],
    }


def shared(model: PreTrainedModel, rows: SharedRows) -> dict[str, Tensor]:
    hidden = model.base_model(**shared_inputs(rows)).last_hidden_state[0, rows.predicting]
    found = scored_tokens(hidden, model.get_output_embeddings().weight, rows.targets, entropy=True)
    assert found.entropy is not None
    return {
        "logprobs": rows.padded(found.logprobs),
        "entropy": rows.padded(found.entropy),
        "hidden": rows.padded(hidden),
    }


def gradients(model: PreTrainedModel, outputs: dict[str, Tensor]) -> list[Tensor]:
    model.zero_grad()
    torch.manual_seed(2)
    total = sum((torch.randn_like(value) * value).sum() for value in outputs.values())
    assert isinstance(total, Tensor)
    total.backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def test_by_hand() -> None:
    """Two rows share the prompt 7 8, one has the prompt 9: 7 8 | 1 | 4 5 || 9 |, with positions 0 1 2 2 3 0."""
    ids = torch.tensor([[7, 8, 1, 2, 0], [0, 9, 3, 0, 0], [7, 8, 4, 5, 6]])
    mask = torch.tensor([[1, 1, 1, 1, 0], [0, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    rows = share_prompts(ids, mask, 3)
    assert rows.ids.tolist() == [[7, 8, 1, 4, 5, 9]]
    assert rows.positions.tolist() == [[0, 1, 2, 2, 3, 0]]
    assert [(group.prompt, group.completions) for group in rows.groups] == [
        ((0, 2), ((2, 3), (3, 5))),
        ((5, 6), ((6, 6),)),
    ]
    assert rows.targets.tolist() == [1, 2, 4, 5, 6, 3]
    assert rows.predicting.tolist() == [1, 2, 1, 3, 4, 5]
    assert rows.padded(torch.arange(1, 7)).tolist() == [[1, 2, 0], [6, 0, 0], [3, 4, 5]]


@pytest.mark.parametrize("kind", MODELS)
def test_every_architecture_gives_what_padded_rows_give(kind: str) -> None:
    ids, mask, length = ragged([6, 3], [[5, 7, 1], [4, 8]])
    model = model_of(kind)
    assert why_not_shared(model) is None
    expected = padded(model, ids, mask, length)
    by_padded = gradients(model, expected)
    take_shared_rows(model)
    found = shared(model, share_prompts(ids, mask, length))
    for name, value in expected.items():
        assert_close(found[name], value, rtol=0, atol=1e-10, msg=lambda text, n=name: f"{n}: {text}")
    exact = 1e-7 if "moe" in kind else 1e-10  # routers weigh their experts in float32
    for one, other in zip(gradients(model, found), by_padded, strict=True):
        assert_close(one, other, rtol=0, atol=exact)


@pytest.mark.parametrize("left", [True, False])
def test_groups_of_one_and_empty_completions(left: bool) -> None:
    ids, mask, length = ragged([2, 5, 1], [[3], [0, 6, 0], [1, 1]], left=left)
    model = model_of("llama")
    expected = padded(model, ids, mask, length)
    take_shared_rows(model)
    found = shared(model, share_prompts(ids, mask, length))
    for name in ("logprobs", "entropy"):
        assert_close(found[name], expected[name], rtol=0, atol=1e-10)


def test_float32_agrees_to_a_millionth_of_the_largest() -> None:
    ids, mask, length = ragged([6, 3], [[5, 7, 1], [4, 8]])
    model = model_of("llama").float()
    expected = padded(model, ids, mask, length)
    by_padded = gradients(model, expected)
    take_shared_rows(model)
    for one, other in zip(
        gradients(model, shared(model, share_prompts(ids, mask, length))), by_padded, strict=True
    ):
        assert (one - other).abs().max() <= 2e-6 * other.abs().max()


def test_gradient_checkpointing_recomputes_with_the_rows_of_its_own_batch() -> None:
    """Two batches go forward before either goes backward: each layer must be made anew with its own rows."""
    batches = [ragged([6, 3], [[5, 7, 1], [4, 8]]), ragged([2, 4], [[3, 3], [2, 9]])]
    model = model_of("llama")
    take_shared_rows(model)
    rows = [share_prompts(*batch) for batch in batches]
    plain = [gradients(model, shared(model, one)) for one in rows]
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    outputs = [shared(model, one) for one in rows]
    for output, expected in zip(outputs, plain, strict=True):
        for one, other in zip(gradients(model, output), expected, strict=True):
            assert_close(one, other, rtol=0, atol=1e-12)


def test_calls_without_rows_are_plain_attention() -> None:
    ids, mask, _ = ragged([6, 3], [[5, 7, 1], [4, 8]])
    model = model_of("qwen3")
    before = model(input_ids=ids, attention_mask=mask).logits
    take_shared_rows(model)
    assert torch.equal(model(input_ids=ids, attention_mask=mask).logits, before)


@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [
        ("gemma2", {"head_dim": 8, "attn_logit_softcapping": 50.0}, "caps its attention's logits"),
        ("qwen3_moe", {"output_router_logits": True}, "auxiliary loss"),
    ],
)
def test_models_that_cannot_say_why(kind: str, changes: dict[str, Any], reason: str) -> None:
    assert reason in str(why_not_shared(model_of(kind, **changes)))


def test_a_row_without_a_prompt_is_named() -> None:
    with pytest.raises(ValueError, match="row 1 has no prompt token"):
        share_prompts(torch.ones(2, 3).long(), torch.tensor([[1, 1, 1], [0, 1, 1]]), 2)


def test_attention_that_is_trained_through_runs_in_float32_under_bfloat16() -> None:
    """Its backward in 16 bits is the slower one on a CPU; what comes out is rounded once."""
    torch.manual_seed(0)
    ids = torch.randint(1, VOCABULARY, (1, 4)).expand(2, 4)
    ids = torch.cat([ids, torch.randint(1, VOCABULARY, (2, 3))], 1)
    rows = share_prompts(ids, torch.ones_like(ids), 3)
    length = rows.ids.size(1)
    narrow = [torch.randn(1, 4, length, 8).bfloat16() for _ in range(3)]
    module = torch.nn.Module()
    wide, _ = shared_attention(module, *[one.float() for one in narrow], None, shared_rows=rows)
    asked = [one.clone().requires_grad_() for one in narrow]
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = shared_attention(module, *asked, None, shared_rows=rows)
    assert found.dtype is torch.bfloat16
    assert torch.equal(found, wide.bfloat16())
    found.sum().backward()
    assert all(one.grad is not None and one.grad.dtype is torch.bfloat16 for one in asked)
