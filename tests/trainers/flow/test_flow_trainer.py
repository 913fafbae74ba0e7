"""The image trainer: its step against the published formula in another form, on-policy, resumed, refused."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from flow_helpers import flow_trainer, rows, small_flow, weights
from image_judges import (
    breaks_at_two,
    bright,
    bright_a_and_b,
    every_other,
    left_minus_right,
    reads_text,
)
from peft import LoraConfig
from torch import Tensor
from torch.testing import assert_close

from posttrain.rewards.runner import RewardError


def reference_loss(
    trainer: Any, rollout: dict[str, Tensor], guard: bool, clip: float, scale: float
) -> Tensor:
    """The page's formulas, moment form, a float64 copy of the model, one number for the whole step."""

    model = copy.deepcopy(trainer.accelerator.unwrap_model(trainer.model)).double()
    times = trainer.sampler.rule.times.double()
    latents, means = rollout["latents"].double(), rollout["means"].double()
    classes, a = rollout["condition: classes"], 0.7
    losses = []
    for j in range(3):
        t, after = times[j], times[j + 1]
        dt, rest = after - t, 1 - (times[1] if t == 1 else t)
        std = a * (t / rest).sqrt()
        s = std * (-dt).sqrt()
        x, nxt = latents[:, j], latents[:, j + 1]

        def velocity(labels: Tensor, x: Tensor = x, t: Tensor = t) -> Tensor:
            return model(x, t.expand(len(x)), labels)

        v = velocity(classes)
        if scale != 1:
            away = velocity(torch.full_like(classes, 4))
            v = away + scale * (v - away)
        mu = x + (v + std**2 / (2 * t) * (x + (1 - t) * v)) * dt
        log_new = -((nxt - mu) ** 2).flatten(1).mean(1) / (2 * s**2)
        log_old = -((nxt - means[:, j]) ** 2).flatten(1).mean(1) / (2 * s**2)
        log_ratio = log_new - log_old
        weight = 1.0
        if guard:
            log_ratio = s * (log_ratio + ((mu - means[:, j]) ** 2).flatten(1).mean(1) / (2 * s**2))
            weight = 1 / -dt
        ratio, advantage = log_ratio.exp(), rollout["advantages"].squeeze(1).double()
        losses.append(
            weight * torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip))
        )
    return (model, torch.stack(losses).mean())


@pytest.mark.parametrize(("method", "clip"), [("FlowGRPO", 3e-3), ("GRPOGuard", 3e-4)])
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_second_update_is_the_formulas(method, clip, scale, tmp_path):
    """The first update is on-policy; at the second the policy has moved, and some ratios are clipped."""
    trainer = flow_trainer(
        method, tmp_path, num_iterations=2, max_steps=1, clip=clip, cfg_scale=scale, max_grad_norm=0.0,
        learning_rate=0.3 if method == "FlowGRPO" else 0.03,
    )  # fmt: skip
    trainer.train()
    rollout = trainer._buffered_inputs[0]
    model, loss = reference_loss(trainer, rollout, method == "GRPOGuard", clip, scale)
    loss.backward()
    trainer.model.zero_grad()
    trainer.current_gradient_accumulation_steps = 1
    mine = trainer.training_step(trainer.model, list(trainer.train_dataset))
    assert trainer._metrics["train"]["clip_ratio/region_mean"][-1] > 0.02
    assert mine.item() == pytest.approx(loss.item(), abs=3e-5)
    for one, other in zip(trainer.model.parameters(), model.parameters(), strict=True):
        assert_close(one.grad, other.grad.float(), rtol=2e-3, atol=2e-6)


@pytest.mark.parametrize("method", ["FlowGRPO", "GRPOGuard"])
def test_first_update_is_on_policy(method, tmp_path):
    trainer = flow_trainer(method, tmp_path, max_steps=1, cfg_scale=3.0)
    trainer.train()
    (log,) = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert abs(log[f"{trainer.method}/log_ratio"]) < 1e-6
    assert log[f"{trainer.method}/log_ratio_std"] < 1e-6
    assert log["clip_ratio/region_mean"] == 0
    assert log["signal/carried"] == 1.0
    assert log["grad_norm"] > 0


@pytest.mark.parametrize("method", ["FlowGRPO", "GRPOGuard"])
def test_images_grow_brighter_when_that_is_rewarded(method, tmp_path):
    trainer = flow_trainer(
        method, tmp_path, rewards=[bright], max_steps=25, optim="adamw_torch", learning_rate=1e-2
    )
    trainer.train()
    reward = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    assert sum(reward[-3:]) / 3 > sum(reward[:3]) / 3 + 0.05


def test_sampler_cps_trains_flow_grpo(tmp_path):
    trainer = flow_trainer(
        "FlowGRPO", tmp_path, rewards=[bright], sampler="cps", max_steps=25, optim="adamw_torch",
        learning_rate=1e-2,
    )  # fmt: skip
    trainer.train()
    reward = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    assert sum(reward[-3:]) / 3 > sum(reward[:3]) / 3 + 0.05


@pytest.mark.parametrize("at", [1, 3])
def test_resume_goes_on_bit_for_bit(at, tmp_path):
    """A checkpoint at step 1 lies within a rollout, one at step 3 too, behind another."""
    settings = {
        "num_iterations": 2, "max_steps": 4, "optim": "adamw_torch", "eval_dataset": rows(4),
        "beta": 0.02, "save_strategy": "steps", "save_steps": at,
    }  # fmt: skip
    whole = flow_trainer("GRPOGuard", tmp_path, **settings)
    whole.train()
    resumed = flow_trainer("GRPOGuard", tmp_path, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{at}"))
    for one, other in zip(weights(whole), weights(resumed), strict=True):
        assert torch.equal(one, other)
    assert whole.evaluate()["eval_reward"] == resumed.evaluate()["eval_reward"]


def test_kl_is_to_the_model_at_the_start(tmp_path):
    trainer = flow_trainer("FlowGRPO", tmp_path, beta=0.1, max_steps=3, learning_rate=0.3)
    before = [parameter.clone() for parameter in trainer.reference.parameters()]
    trainer.train()
    kl = [entry["kl"] for entry in trainer.state.log_history if "kl" in entry]
    assert kl[0] == pytest.approx(0, abs=1e-9)
    assert kl[2] > 0
    for one, other in zip(before, trainer.reference.parameters(), strict=True):
        assert torch.equal(one, other)


def test_adapter_is_trained_and_its_base_is_the_reference(tmp_path):
    adapter = LoraConfig(r=4, target_modules=["wide", "back"])
    base = small_flow()
    held = {name: value.clone() for name, value in base.state_dict().items()}
    trainer = flow_trainer(
        "GRPOGuard", tmp_path, base, peft_config=adapter, beta=0.1, max_steps=3, learning_rate=0.3
    )
    assert trainer.reference is None
    trainer.train()
    kl = [entry["kl"] for entry in trainer.state.log_history if "kl" in entry]
    assert kl[0] == pytest.approx(0, abs=1e-9)
    assert kl[2] > 0
    whole = trainer.model.get_base_model().state_dict()
    for name, value in held.items():
        kept = name if name in whole else ".base_layer.".join(name.rsplit(".", 1))
        assert torch.equal(whole[kept], value)


def test_rows_without_advantage_leave_the_divisor(tmp_path):
    """Groups whose images all earn the same are dropped; the others' gradient is as if they had not been there."""

    trainer = flow_trainer(
        "GRPOGuard", tmp_path, rewards=[bright_a_and_b], max_steps=1, shuffle_dataset=False
    )
    trainer.train()
    (log,) = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert log["grpo_guard/kept_share"] == 0.5
    assert log["signal/equal_rewards"] == 0.5
    assert log["signal/carried"] == 0.5
    dt = -(trainer.sampler.rule.times[1:4] - trainer.sampler.rule.times[:3])
    advantages = trainer._buffered_inputs[0]["advantages"]
    expected = -(advantages.sum() * (1 / dt).sum() / (8 * 3)).item()
    assert log["loss"] == pytest.approx(expected, abs=1e-4)


def test_evaluation_makes_one_image_per_row_the_same_every_time(tmp_path):
    trainer = flow_trainer("FlowGRPO", tmp_path, eval_dataset=rows(6), rewards=[bright, left_minus_right])
    first, second = trainer.evaluate(), trainer.evaluate()
    assert first == second
    (held,) = trainer.held_out
    assert len(held.images) == 6
    assert first["eval_rewards/bright/mean"] == pytest.approx(sum(bright(held.images)) / 6, abs=1e-6)
    assert first["eval_reward"] == pytest.approx(
        first["eval_rewards/bright/mean"] + first["eval_rewards/left_minus_right/mean"], abs=1e-6
    )


def test_unjudged_images_teach_nothing(tmp_path):
    trainer = flow_trainer("GRPOGuard", tmp_path, rewards=[every_other], max_steps=1)
    trainer.train()
    (log,) = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert log["signal/unjudged"] == 0.5
    assert log["grpo_guard/kept_share"] == 0.5
    assert log["reward_failures/every_other/none"] == 8


def test_a_failing_reward_stops_the_run_at_a_saved_step(tmp_path):
    trainer = flow_trainer("GRPOGuard", tmp_path, rewards=[breaks_at_two], max_steps=4)
    with pytest.raises(RewardError, match="saved as of step 2"):
        trainer.train()
    assert (tmp_path / "checkpoint-2" / "rollout_state_0.pt").is_file()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rewards": [reads_text]}, "judges texts"),
        ({"cfg_scale": 2.0, "guided_training": False}, "guided_training is off"),
        ({"num_generations": 5}, "does not divide into groups of 5"),
        ({"trained_share": 0.2}, "less than one"),
        ({"sampler": "cps", "trained_share": 1.0}, "no noise in its last step"),
        ({"gradient_accumulation_steps": 2, "steps_per_generation": 1}, "would mix two"),
    ],
)
def test_refusals(changes, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        flow_trainer("FlowGRPO", tmp_path, **changes)


def test_last_step_is_left_out(tmp_path):
    """4 steps, share 0.99: three are trained on."""
    trainer = flow_trainer("FlowGRPO", tmp_path, max_steps=1)
    trainer.train()
    (log,) = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert log["signal/tokens"] == 16 * 3
    assert math.isclose(trainer.sampler.rule.times[-2], 0.001, rel_tol=1e-5)
