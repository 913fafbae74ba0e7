"""What the trainer tells an objective of a step, and what it logs of it, by hand."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from tiny_run import arguments, judged, rows

from posttrain.objectives.base import TokenBatch
from posttrain.objectives.bgpo import BGPO
from posttrain.objectives.grpo import GRPO
from posttrain.observe.signal import SignalCounts, account_objective
from posttrain.rollout.base import Completion, Sampling
from posttrain.rollout.masked.response_canvas import lay_canvas
from posttrain.trainers.engines.rollouts import Rollouts
from posttrain.trainers.engines.turns import Turns
from posttrain.trainers.masked.likelihood import draw_noise
from posttrain.trainers.masked.masked_rollouts import sampling_of
from posttrain.trainers.policy.bindings import GRPOConfig
from posttrain.trainers.policy.loss_metrics import LossMetrics
from posttrain.trainers.policy.token_weights import token_weights
from posttrain.trainers.policy.trainer import PolicyTrainer

SEEN: list[dict] = []


@dataclass(frozen=True)
class Watching(GRPO):
    """GRPO that notes what it is told of each step."""

    def token_loss(self, batch):
        SEEN.append({name: float(value) for name, value in batch.step.items()})
        return super().token_loss(batch)


def test_the_objective_is_told_the_rate_of_now_and_the_highest_of_the_schedule(
    tiny_model, tokenizer, tmp_path
):
    SEEN.clear()
    args = GRPOConfig(**arguments(tmp_path, max_steps=4, warmup_steps=4, learning_rate=0.008))
    PolicyTrainer(tiny_model, judged, args, rows(), processing_class=tokenizer, objective=Watching()).train()
    assert {one["peak_learning_rate"] for one in SEEN} == {0.008}
    told = list(
        dict.fromkeys(one["learning_rate"] for one in SEEN)
    )  # the account of the signal asks a second time
    assert told == pytest.approx([0.0, 0.002, 0.004, 0.006])


def token_batch() -> TokenBatch:
    """Ratios 1.5, 0.5 | 1.5, 0.5 at bounds 0.8 and 1.2; the first row pushed up, the second down; one token masked."""
    logprobs = torch.tensor([[1.5, 0.5], [1.5, 0.5]]).log()
    mask = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    return TokenBatch(logprobs, torch.zeros(2, 2), mask, torch.tensor([[1.0], [-1.0]]))


def logged(keep: torch.Tensor | None, **extra) -> dict[str, float]:
    batch, objective = token_batch(), GRPO()
    signal: SignalCounts = account_objective(
        objective,
        batch,
        generated=torch.ones(2, 2, dtype=torch.bool),
        keep=keep,
        unjudged=torch.zeros(2, 1, dtype=torch.bool),
        equal_rewards=torch.zeros(2, 1, dtype=torch.bool),
        truncated=torch.zeros(2, 1, dtype=torch.bool),
        tool=None,
        importance=None,
    )
    metrics = LossMetrics(Accelerator(cpu=True))
    entropies = torch.tensor([[1.0, 2.0], [3.0, 50.0]])
    for share, first in ((0.5, True), (1.5, False)):  # two micro-batches
        metrics.add(
            objective, "grpo", batch, keep=keep, kl=None, entropies=entropies, share=torch.tensor(share), first=first,
            signal=signal, **extra,
        )  # fmt: skip
    return metrics.flush()


def test_shares_and_means_of_a_step_by_hand():
    found = logged(torch.tensor([[True, False], [True, True]]), aux_loss=torch.tensor(0.25))
    assert found["kept_share"] == pytest.approx(2 / 3)  # of the three loss tokens; the masked one has no say
    assert found["entropy"] == pytest.approx((1 + 2 + 3) / 3)
    assert found["policy_loss"] == pytest.approx(2.0)
    assert found["aux_loss"] == pytest.approx(0.25)
    assert found["clip_ratio/high_mean"] == pytest.approx(
        1 / 3
    )  # 1.5 with A > 0; 1.5 with A < 0 is not clipped
    assert found["clip_ratio/low_mean"] == 0.0  # 0.5 with A < 0 is masked, 0.5 with A > 0 is not clipped
    assert found["clip_ratio/region_mean"] == pytest.approx(1 / 3)
    assert (found["clip_ratio/high_max"], found["clip_ratio/low_min"]) == (0.5, 0.0)
    assert "kept_share" not in logged(None)


def test_factors_on_the_token_losses_multiply():
    """Off-policy mask, entropy mask and importance ratio: the product, whichever are there."""
    batch = token_batch()
    off, entropy = torch.tensor([[1.0], [0.0]]), torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    ratio = torch.tensor([[0.5, 2.0], [4.0, 8.0]])

    def weights(threshold, quantile, inputs):
        host = SimpleNamespace(
            off_policy_mask_threshold=threshold,
            top_entropy_quantile=quantile,
            get_high_entropy_mask=lambda *_: entropy,
        )
        return token_weights(host, batch, inputs, torch.zeros(2, 2))

    sampled = {"importance_sampling_ratio": ratio}
    assert weights(None, 1.0, {}) is None
    assert torch.equal(weights(None, 0.5, sampled), entropy * ratio)
    # 1 - log 1.5 nats at the one token of the second row, whose advantage is negative; the first row's is not
    moved = {"sampling_per_token_logps": torch.tensor([[2.0, 2.0], [1.0, 9.0]])}
    assert torch.equal(weights(0.59, 0.5, sampled | moved), off * entropy * ratio)
    assert torch.equal(weights(0.59, 1.0, moved), off)
    assert torch.equal(weights(0.6, 1.0, moved), torch.ones(2, 1))
    # without the sampler's log-probs the old policy's count: the second row became likelier, its KL is negative
    assert torch.equal(weights(0.1, 1.0, {}), torch.ones(2, 1))


class Recorder:
    """An engine that keeps what it was asked for."""

    def __init__(self) -> None:
        self.asked = []

    def generate(self, prompts, sampling):
        self.asked += list(sampling)
        return [Completion([5], [-1.0], "length", ((0, 1),)) for _ in prompts]


def diffusion_seeds(rank: int, *, step: int = 0, training: bool = True, count: int = 3) -> list[int]:
    host = SimpleNamespace(
        model=SimpleNamespace(training=training),
        accelerator=SimpleNamespace(process_index=rank),
        state=SimpleNamespace(global_step=step),
        args=SimpleNamespace(seed=7, eval_temperature=None),
        held_out=[],
        temperature=1.0,
        max_completion_length=4,
        eos_token_ids=[1],
    )
    return [one.seed for one in sampling_of(host, count)]


def test_every_row_of_every_rank_draws_from_a_seed_of_its_own():
    together = diffusion_seeds(0, count=6)
    assert diffusion_seeds(0) + diffusion_seeds(1) == together  # whatever the number of ranks
    assert len(set(together)) == 6
    assert not set(together) & set(diffusion_seeds(0, step=1, count=6))
    assert not set(together) & set(diffusion_seeds(0, training=False, count=6))


def test_ranks_sample_further_turns_from_seeds_apart(monkeypatch):
    asked = []

    def first_seed(rank: int) -> int:
        host = SimpleNamespace(
            scorer=None,
            model=SimpleNamespace(training=True),
            args=SimpleNamespace(seed=7),
            state=SimpleNamespace(global_step=2),
            accelerator=SimpleNamespace(process_index=rank),
            check_sampled=lambda _: None,
            tools=None,
            environments=None,
        )
        host.turns = Turns(host)
        rollouts = Rollouts(host)
        rollouts.engine = Recorder()
        rollouts._sampling = lambda training: Sampling(max_new_tokens=4)
        rollouts._generate_now = lambda prompts, sampling: asked.append(sampling) or []
        rollouts.single_turn([[5, 6]] * 3, None)
        return asked[-1].seed

    assert first_seed(1) - first_seed(0) == 3  # row i draws from seed + i


def canvas_of(lengths: list[int], width: int):
    ids = torch.full((len(lengths), width), 9)
    mask = (torch.arange(width) < torch.tensor(lengths).unsqueeze(1)).long()
    prompt = torch.full((len(lengths), 2), 8)
    return lay_canvas(
        prompt, torch.ones_like(prompt), ids, mask, tail="drop", length=width, mask_id=4, end_id=1
    )


def test_a_rows_noise_depends_on_its_own_length_and_place_alone():
    objective = BGPO(samples=4, noise="count")

    def noise(lengths, width, places, step=0):
        return draw_noise(
            objective, canvas_of(lengths, width), torch.tensor(places), iterations=1, seed=1, step=step
        )

    alone, wide = noise([3], 3, [5]), noise([6, 3], 8, [0, 5])
    assert torch.equal(alone.masks[0], wide.masks[1, :, :3])  # not of the canvas' length
    assert not wide.masks[1, :, 3:].any()
    assert torch.equal(alone.weights[0], wide.weights[1])
    same = noise([6, 6], 6, [0, 1])
    assert not torch.equal(same.masks[0], same.masks[1])
    assert not torch.equal(same.masks[0], noise([6], 6, [0], step=1).masks[0])
