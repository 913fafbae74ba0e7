"""The critic: which state a value is of, that it learns alone first, that a resume and a wrapping method carry it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from letter_rewards import first_letter_right
from tiny_run import arguments, judged, rows
from torch.testing import assert_close
from transformers import LlamaForSequenceClassification

from posttrain.trainers import (
    GRPOConfig,
    GRPOTrainer,
    PPOConfig,
    PPOMaxConfig,
    PPOMaxTrainer,
    PPOTrainer,
    SALSAConfig,
    SALSATrainer,
)
from posttrain.trainers.forward.base import Rows
from posttrain.trainers.policy.value_model import value_model

OWN: dict[str, Any] = {"critic_learning_rate": 1e-2}


def weights(model: Any) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def trained(
    model: Any,
    tokenizer: Any,
    folder: Any,
    trainer: Any = PPOTrainer,
    config: Any = PPOConfig,
    **settings: Any,
):
    args = config(**arguments(folder, **settings))
    made = trainer(copy.deepcopy(model), judged, args, rows(24), processing_class=tokenizer)
    made.train()
    return made


def noisy_head(model: Any) -> Any:
    torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(0))
    return model


def test_a_value_is_of_the_state_before_its_token(tiny_model):
    critic = noisy_head(value_model(tiny_model, None)).eval()
    prompts, completions = [[5, 6, 7], [8]], [[9, 10, 11, 12], [13, 14]]
    found = critic(Rows.of_lists(prompts, completions, filler=0, device="cpu"))
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        ids = torch.tensor([prompt + completion])
        alone = critic.head(critic.trunk(input_ids=ids).last_hidden_state)[0, len(prompt) - 1 : -1]
        assert_close(found[row, : len(completion)], alone, rtol=1e-4, atol=1e-5)
    assert (found[1, 2:] == 0).all()
    # the token itself is not seen by its own value, and is by the next one's
    other = critic(Rows.of_lists(prompts, [[9, 20, 11, 12], [13, 14]], filler=0, device="cpu"))
    assert_close(other[0, :2], found[0, :2])
    assert (other[0, 2] - found[0, 2]).abs() > 1e-4


def test_padding_on_either_side_changes_no_value(tiny_model):
    critic = noisy_head(value_model(tiny_model, None)).eval()
    rows_of = Rows.of_lists([[5, 6, 7], [8, 9, 7]], [[9, 10], [13]], filler=0, device="cpu")
    plain = critic(rows_of)
    pad = torch.zeros(2, 3, dtype=torch.long)
    wide = Rows(
        torch.cat([pad, rows_of.prompt_ids], 1), torch.cat([pad, rows_of.prompt_mask], 1),
        torch.cat([rows_of.completion_ids, pad], 1), torch.cat([rows_of.completion_mask, pad], 1),
    )  # fmt: skip
    assert_close(critic(wide), torch.cat([plain, torch.zeros(2, 3)], 1))


def test_a_reward_model_brings_its_head(tiny_model, tmp_path):
    config = copy.deepcopy(tiny_model.config)
    config.num_labels, config.pad_token_id = 1, 0
    scorer = LlamaForSequenceClassification(config)
    scorer.save_pretrained(tmp_path / "rm")
    critic = value_model(tiny_model, str(tmp_path / "rm"))
    assert_close(critic.head.weight, scorer.score.weight)
    assert_close(weights(critic.trunk), weights(scorer.model))
    config.num_labels = 3
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "three")
    with pytest.raises(ValueError, match="3 scores"):
        value_model(tiny_model, str(tmp_path / "three"))


@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
def test_the_critic_learns_alone_first_and_the_policy_stays_bit_for_bit(
    tiny_model, tokenizer, tmp_path, shared
):
    start = weights(tiny_model)
    made = trained(
        tiny_model,
        tokenizer,
        tmp_path,
        **OWN,
        share_trunk=shared,
        critic_warmup=2,
        max_steps=2,
        weight_decay=0.1,
    )
    assert all(torch.equal(a, b) for a, b in zip(weights(made.model), start, strict=True))
    assert any(p.abs().max() > 0 for p in made.critic.module.parameters())
    logged = [one for one in made.state.log_history if "ppo/value_loss" in one]
    assert [one["grad_norm"] for one in logged] == [0.0, 0.0]
    further = trained(
        tiny_model,
        tokenizer,
        tmp_path,
        **OWN,
        share_trunk=shared,
        critic_warmup=2,
        max_steps=3,
        weight_decay=0.1,
    )
    assert any(not torch.equal(a, b) for a, b in zip(weights(further.model), start, strict=True))


def test_values_come_to_foresee_the_reward(tiny_model, tokenizer, tmp_path):
    """The policy stands still; the first of two characters decides, so that half of the values can be right."""
    args = PPOConfig(
        **arguments(tmp_path, max_steps=40, per_device_train_batch_size=48, max_completion_length=2),
        critic_learning_rate=1e-2, critic_warmup=40, gae_lambda=1.0, value_clip=None,
    )  # fmt: skip
    made = PPOTrainer(tiny_model, first_letter_right, args, rows(24), processing_class=tokenizer)
    made.train()
    found = [
        one["ppo/explained_variance"] for one in made.state.log_history if "ppo/explained_variance" in one
    ]
    assert found[0] == pytest.approx(0.0, abs=0.01)
    assert 0.25 < sum(found[-5:]) / 5 <= 0.55


def test_the_trunk_learns_from_the_value_loss_where_it_is_shared(tiny_model, tokenizer, tmp_path):
    runs = [
        trained(
            tiny_model,
            tokenizer,
            tmp_path,
            **OWN,
            share_trunk=True,
            value_coef=coef,
            max_steps=2,
            optim="sgd",
        )
        for coef in (1e-9, 1.0)
    ]
    assert any(not torch.equal(a, b) for a, b in zip(*(weights(one.model) for one in runs), strict=True))


@pytest.mark.parametrize("layout", ["padded", "shared"])
def test_layouts_agree_on_a_shared_trunk(tiny_model, tokenizer, tmp_path, layout):
    made = trained(
        tiny_model,
        tokenizer,
        tmp_path,
        **OWN,
        share_trunk=True,
        max_steps=3,
        layout=layout,
        optim="sgd",
        beta=0.1,
    )
    other = trained(
        tiny_model,
        tokenizer,
        tmp_path,
        **OWN,
        share_trunk=True,
        max_steps=3,
        layout="trimmed",
        optim="sgd",
        beta=0.1,
    )
    assert_close(weights(made.model), weights(other.model), rtol=1e-4, atol=1e-6)


def test_with_a_groups_baseline_the_run_is_grpos(tiny_model, tokenizer, tmp_path):
    ours = trained(tiny_model, tokenizer, tmp_path, baseline="group", loss_over="responses", num_iterations=2)
    grpo = trained(tiny_model, tokenizer, tmp_path, GRPOTrainer, GRPOConfig, num_iterations=2)
    assert ours.critic is None
    assert all(torch.equal(a, b) for a, b in zip(weights(ours.model), weights(grpo.model), strict=True))


def test_ppo_max_with_everything_off_is_ppo(tiny_model, tokenizer, tmp_path):
    off = {"reward_norm": "none", "reward_clip": None, "whiten": True, "beta": 0.1, **OWN}
    ours = trained(tiny_model, tokenizer, tmp_path, PPOMaxTrainer, PPOMaxConfig, **off)
    ppo = trained(tiny_model, tokenizer, tmp_path, beta=0.1, **OWN)
    assert all(torch.equal(a, b) for a, b in zip(weights(ours.model), weights(ppo.model), strict=True))


@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
def test_a_resume_goes_on_bit_for_bit(tiny_model, tokenizer, tmp_path, shared):
    """In the middle of a rollout's window, with running reward moments and a critic in mid-training."""
    settings = {
        **OWN, "share_trunk": shared, "beta": 0.1, "num_iterations": 2, "critic_warmup": 1, "max_steps": 5,
        "save_strategy": "steps", "save_steps": 3, "lr_scheduler_type": "constant",
    }  # fmt: skip
    whole = trained(tiny_model, tokenizer, tmp_path / "a", PPOMaxTrainer, PPOMaxConfig, **settings)
    args = PPOMaxConfig(**arguments(tmp_path / "b", **settings))
    again = PPOMaxTrainer(copy.deepcopy(tiny_model), judged, args, rows(24), processing_class=tokenizer)
    again.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))
    assert all(torch.equal(a, b) for a, b in zip(weights(again.model), weights(whole.model), strict=True))
    pairs = zip(weights(again.critic.module), weights(whole.critic.module), strict=True)  # type: ignore[union-attr]  # has one
    assert all(torch.equal(a, b) for a, b in pairs)


def test_salsa_in_its_published_form(tiny_model, tokenizer, tmp_path):
    other = copy.deepcopy(tiny_model)
    with torch.no_grad():
        for one in other.parameters():
            one.add_(0.02 * torch.randn(one.shape, generator=torch.Generator().manual_seed(0)))
    other.save_pretrained(tmp_path / "sft2")
    settings = {"objective": "ppo", "others": [str(tmp_path / "sft2")], "beta": 0.1}
    run = {"objective_settings": dict(OWN)}
    soup = trained(tiny_model, tokenizer, tmp_path, SALSATrainer, SALSAConfig, **settings, **run)
    assert soup.critic is not None
    alone = trained(
        tiny_model, tokenizer, tmp_path, SALSATrainer, SALSAConfig, **settings, **run, weights=[1.0, 0.0]
    )
    ppo = trained(tiny_model, tokenizer, tmp_path, beta=0.1, **OWN)
    # weights [1, 0] leave the policy's start as the reference: PPO, bit for bit
    assert all(torch.equal(a, b) for a, b in zip(weights(alone.model), weights(ppo.model), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(weights(soup.model), weights(ppo.model), strict=True))
