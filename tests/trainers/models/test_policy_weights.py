"""The policy's weights as an engine gets them: checkpoint names, adapters merged, the model untouched."""

from __future__ import annotations

import copy

import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from rollout_fakes import small_model

from posttrain.trainers.models.weights import policy_weights


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def with_adapter(**options):
    torch.manual_seed(0)
    config = LoraConfig(
        r=4, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM", lora_dropout=0.5, **options
    )
    model = get_peft_model(small_model(), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def test_a_whole_model_is_sent_under_its_own_names(accelerator: Accelerator) -> None:
    model = small_model()
    sent = dict(policy_weights(model, accelerator))
    assert set(sent) == {name for name, _ in model.named_parameters()}
    assert all(torch.equal(sent[name], parameter) for name, parameter in model.named_parameters())


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"modules_to_save": ["lm_head"]}])
def test_adapters_arrive_merged_and_the_model_stays_bit_for_bit(
    options: dict, accelerator: Accelerator
) -> None:
    model = with_adapter(**options)
    before = copy.deepcopy(model.state_dict())
    sent = {name: tensor.clone() for name, tensor in policy_weights(model, accelerator)}
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    merged = dict(copy.deepcopy(model).merge_and_unload().named_parameters())
    assert set(sent) == set(merged)
    for name, parameter in merged.items():
        torch.testing.assert_close(sent[name], parameter.data, atol=1e-6, rtol=0, msg=name)


def test_sending_many_times_does_not_wear_the_frozen_weights(accelerator: Accelerator) -> None:
    """In bfloat16 merging and unmerging in place would round them anew each time."""
    model = with_adapter().to(torch.bfloat16)
    name = "base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight"
    before = model.get_parameter(name).detach().clone()
    for _ in range(20):
        for _ in policy_weights(model, accelerator):
            pass
    assert torch.equal(model.get_parameter(name), before)


def test_a_walk_that_is_broken_off_unmerges(accelerator: Accelerator) -> None:
    model = with_adapter()
    before = copy.deepcopy(model.state_dict())
    walk = policy_weights(model, accelerator)
    for name, _ in walk:
        if name.endswith("q_proj.weight"):
            break
    walk.close()
    after = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert not any(getattr(module, "merged", False) is True for module in model.modules())


def test_a_quantised_weight_is_refused(accelerator: Accelerator) -> None:
    model = small_model()
    model.lm_head.weight = torch.nn.Parameter(torch.zeros(4, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ValueError, match=r"lm_head.weight is quantised.*rollout.engine: transformers"):
        list(policy_weights(model, accelerator))
