"""The seam proved: loss, gradient and logged metrics equal TRL's own, for every loss both have.

This is also the alarm when TRL is upgraded.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import trl
from letter_rewards import odd_length
from tiny_run import arguments, judged, rows
from torch.testing import assert_close

from posttrain.ops.off_policy import on_policy_enough, sequence_kl
from posttrain.trainers.policy import bindings

PROMPTS, GROUP, LENGTH = 3, 4, 10


@dataclass(frozen=True)
class Pair:
    """The same loss in both vocabularies."""

    name: str
    ours: str
    theirs: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)
    rewards: tuple[Any, ...] = (judged,)
    unlike: tuple[str, ...] = ()  # log lines that say something else here
    rounding: float = 1e-6  # of weights after three steps of Adam


PAIRS = [
    Pair("grpo", "GRPO", {"loss_type": "grpo", "epsilon": 0.2}, {"clip_low": 0.2, "clip_high": 0.2}),
    Pair(
        "grpo_clip_higher",
        "GRPO",
        {"loss_type": "grpo", "epsilon": 0.2, "epsilon_high": 0.28},
        {"clip_low": 0.2, "clip_high": 0.28},
    ),
    Pair(
        "grpo_delta",
        "GRPO",
        {"loss_type": "grpo", "epsilon": 0.2, "delta": 1.4},
        {"clip_low": 0.2, "clip_high": 0.2, "dual_clip": 1.4},
    ),
    Pair("dr_grpo", "DrGRPO", {"loss_type": "dr_grpo", "epsilon": 0.2, "scale_rewards": "none"}),
    Pair("dapo", "DAPO", {"loss_type": "dapo", "epsilon": 0.2, "epsilon_high": 0.28}),
    Pair(
        "gspo",
        "GSPO",
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.05, "epsilon_high": 0.05},
        {"clip_low": 0.05, "clip_high": 0.05},
    ),
    Pair(
        "sapo",
        "SAPO",
        {"loss_type": "sapo", "sapo_temperature_pos": 1.5, "sapo_temperature_neg": 3.0},
        {"gate_positive": 1.5, "gate_negative": 3.0},
    ),
    Pair("cispo", "CISPO", {"loss_type": "cispo", "epsilon_high": 1.1}, {"ratio_max": 1.1}),
]
SEVERAL_REWARDS = Pair(
    "gdpo",
    "GDPO",
    {"loss_type": "grpo", "epsilon": 0.2, "multi_objective_aggregation": "normalize_then_sum"},
    rewards=(judged, odd_length),
    unlike=("frac_reward_zero_std",),  # TRL's is over the batch
    rounding=1e-5,  # TRL subtracts a mean that is zero up to rounding, which Adam enlarges at small gradients
)
SHARED_METRICS = ("entropy", "kl", "clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean")


def both(pair: Pair, model, tokenizer, tmp_path, **extra: Any):
    """A PolicyTrainer and TRL's trainer on copies of one model."""
    model.config._name_or_path = str(tmp_path / "start")
    model.save_pretrained(tmp_path / "start")
    config = getattr(bindings, f"{pair.ours}Config")(
        **arguments(tmp_path, layout="padded", **extra), **pair.settings
    )  # TRL's own; the other layouts are held to it
    ours = getattr(bindings, f"{pair.ours}Trainer")(
        copy.deepcopy(model), list(pair.rewards), config, rows(), processing_class=tokenizer
    )
    theirs = trl.GRPOTrainer(
        copy.deepcopy(model),
        list(pair.rewards),
        trl.GRPOConfig(**arguments(tmp_path, **extra), **pair.theirs),
        rows(),
        processing_class=tokenizer,
    )
    return ours, theirs


def off_policy_batch(trainer, seed: int = 0) -> dict[str, Any]:
    """A slice of a rollout buffer made by hand: ragged lengths, old and reference log-probs that differ."""
    generator = torch.Generator().manual_seed(seed)
    responses = PROMPTS * GROUP
    prompt = torch.randint(5, 60, (responses, 4), generator=generator)
    completion = torch.randint(5, 60, (responses, LENGTH), generator=generator)
    lengths = torch.randint(3, LENGTH + 1, (responses, 1), generator=generator)
    mask = (torch.arange(LENGTH) < lengths).long()
    advantages = torch.randn(responses, generator=generator)
    batch = {
        "prompt_ids": prompt,
        "prompt_mask": torch.ones_like(prompt),
        "completion_ids": completion,
        "completion_mask": mask,
        "advantages": advantages,
        "num_items_in_batch": mask.sum(),
    }
    with torch.no_grad():
        logprobs, _, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model,
            torch.cat([prompt, completion], 1),
            torch.ones(responses, 4 + LENGTH).long(),
            LENGTH,
        )
    batch["old_per_token_logps"] = logprobs + 0.3 * torch.randn(logprobs.shape, generator=generator)
    batch["ref_per_token_logps"] = logprobs + 0.3 * torch.randn(logprobs.shape, generator=generator)
    return batch


def account_of(batch: dict[str, Any]) -> dict[str, Any]:
    """What our rollout adds to TRL's buffer."""
    none = torch.zeros(PROMPTS * GROUP, dtype=torch.bool)
    return {
        "generated_mask": batch["completion_mask"].bool(),
        "unjudged": none,
        "equal_rewards": none,
        "row": torch.arange(PROMPTS * GROUP),
    }


@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize("on_policy", [True, False])
@pytest.mark.parametrize("pair", PAIRS, ids=lambda p: p.name)
def test_loss_gradient_and_metrics_equal_trl(pair, on_policy, beta, tiny_model, tokenizer, tmp_path):
    ours, theirs = both(pair, tiny_model, tokenizer, tmp_path, beta=beta)
    batch = off_policy_batch(theirs)
    if on_policy:
        del batch["old_per_token_logps"]
    for trainer in (ours, theirs):
        trainer.current_gradient_accumulation_steps = 1
        trainer.create_optimizer_and_scheduler(1)
    ours._buffered_inputs = [batch | account_of(batch)]

    loss = ours._compute_loss(ours.model, ours._buffered_inputs[0])
    expected = theirs._compute_loss(theirs.model, batch)
    loss.backward()
    expected.backward()

    assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    for (name, a), b in zip(ours.model.named_parameters(), theirs.model.parameters(), strict=True):
        assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}")
    common = [m for m in SHARED_METRICS if m in theirs._metrics["train"]]
    assert common
    for metric in common:
        assert ours._metrics["train"][metric] == pytest.approx(theirs._metrics["train"][metric], abs=1e-6), (
            metric
        )


RUNS = {
    "on_policy": {},
    "reused_with_kl": {"num_iterations": 2, "beta": 0.1},
    "accumulated": {"per_device_train_batch_size": 6, "gradient_accumulation_steps": 2},
    "entropy": {"entropy_coef": 0.01},
    "high_entropy_tokens": {"top_entropy_quantile": 0.5, "num_iterations": 2},
    "off_policy_mask": {"off_policy_mask_threshold": 1e-4, "num_iterations": 2},
    "truncated_masked": {"mask_truncated_completions": True, "max_completion_length": 30},
}


@pytest.mark.parametrize("pair", [PAIRS[0], PAIRS[4], SEVERAL_REWARDS], ids=lambda p: p.name)
@pytest.mark.parametrize("extra", RUNS.values(), ids=RUNS.keys())
def test_whole_run_equals_trl(extra, pair, tiny_model, tokenizer, tmp_path):
    """Rollout, rewards, advantages, loss, optimizer: the same weights and the same log lines after three steps."""
    if len(pair.rewards) > 1:
        extra = {**extra, "reward_weights": [1.0, 0.5]}
    ours, theirs = both(pair, tiny_model, tokenizer, tmp_path, **extra)
    for trainer in (ours, theirs):
        trl.trainer.grpo_trainer.set_seed(3)  # the sampler's stream starts at the same place for both
        trainer.train()
    for (name, a), b in zip(ours.model.named_parameters(), theirs.model.parameters(), strict=True):
        assert_close(a, b, rtol=0, atol=pair.rounding, msg=lambda text, n=name: f"{n}: {text}")
    timing = {
        "epoch",
        "step_time",
        "train_runtime",
        "train_samples_per_second",
        "train_steps_per_second",
        "total_flos",
    }
    for mine, its in zip(ours.state.log_history[:-1], theirs.state.log_history[:-1], strict=True):
        for key in its.keys() - timing - set(pair.unlike):
            if key.startswith("rewards/"):
                continue  # the reward's name is the same, the log key carries it
            if key == "entropy" and "gradient_accumulation_steps" in extra:
                continue  # ours is over the step's tokens, TRL's a mean of micro-batch means
            assert mine[key] == pytest.approx(its[key], abs=1e-6), key


@pytest.mark.parametrize("width", [1, LENGTH])
def test_the_off_policy_mask_equals_trls(width):
    generator = torch.Generator().manual_seed(0)
    logprobs, sampled = (-torch.rand(40, LENGTH, generator=generator) for _ in range(2))
    sampled[3, 2] = torch.nan
    mask = (torch.arange(LENGTH) < torch.randint(0, LENGTH + 1, (40, 1), generator=generator)).float()
    advantages = torch.randn(40, width, generator=generator)
    theirs = trl.GRPOTrainer.get_off_policy_mask(advantages, logprobs, sampled, mask, 0.05)
    ours = on_policy_enough(advantages, sequence_kl(logprobs, sampled, mask), 0.05)
    assert torch.equal(ours.float(), theirs)
    assert 0 < theirs.mean() < 1
