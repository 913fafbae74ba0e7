"""Dynamic sampling in whole short runs, with a reward that is scripted by the row."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from places import SUPPORT
from rollout_fakes import CopyEngine, small_model

from posttrain.objectives.base import Objective
from posttrain.objectives.copo import COPO
from posttrain.objectives.dapo import DAPO
from posttrain.objectives.grpo import GRPO
from posttrain.rewards.runner import RewardError
from posttrain.rollout.resample import ResampleRule
from posttrain.rollout.transformers_engine import TransformersEngine
from posttrain.trainers.engines.rollout_plan import RolloutPlan
from posttrain.trainers.models.load import character_tokenizer
from posttrain.trainers.policy.trainer import PolicyTrainer
from posttrain.trainers.seam.config import PolicyConfig

REWARDS = SUPPORT / "kind_reward.py"
BY_KIND = f"{REWARDS}:by_kind"
HAND = ["right", "mixed", "wrong", "mixed", "half", "none", "mixed", "mixed", "some", "one", "rare", "mixed"]


class Noting(PolicyTrainer):
    """Keeps which rows each rollout trains on, and its tokens."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self.numbers: list[list[int]] = []
        self.tokens: list[list[list[int]]] = []
        super().__init__(*arguments, **named)

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        if self.model.training:
            assert self.rollout is not None
            self.numbers.append(self.rollout.columns["number"][:: self.num_generations])
            self.tokens.append(self.rollout.completion_ids)
            self.extra = self.rollout.extra
        return output

    def column(self, name: str) -> list[float]:
        return [float(one[name]) for one in self.state.log_history if name in one]

    def weights(self) -> list[torch.Tensor]:
        return [parameter.detach().clone() for parameter in self.model.parameters()]


def trainer_in(
    folder: Path, kinds: list[str], reward: str = BY_KIND, objective: Objective | None = None, **changes: Any
) -> Noting:
    rows = [{"prompt": f"{i}+{i % 7}=", "number": i, "kind": kind} for i, kind in enumerate(kinds)]
    arguments = {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 8,
        "learning_rate": 3e-3,
        "shuffle_dataset": False,
        "max_steps": 2,
        "seed": 3,
        **changes,
    }
    return Noting(
        small_model(scale=6.0).train(),
        reward,
        PolicyConfig(**arguments),
        Dataset.from_list(rows),
        processing_class=character_tokenizer(),
        objective=GRPO() if objective is None else objective,
    )


def own(model: Any) -> TransformersEngine:
    return TransformersEngine.of(model, pad_token_id=0)


def run(
    folder: Path,
    kinds: list[str],
    rule: ResampleRule | None,
    engine: Any = own,
    staleness: int = 0,
    resume: str | None = None,
    **changes: Any,
) -> Noting:
    trainer = trainer_in(folder, kinds, **changes)
    trainer.use_engine(engine(trainer.model), RolloutPlan(staleness=staleness, resample=rule))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def equal(a: Noting, b: Noting) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.weights(), b.weights(), strict=True))


def test_open_slots_take_the_next_prompts_that_teach(tmp_path: Path) -> None:
    """HAND by hand: 0 is right, so 2 (wrong) and then 3 stand in; then 4 and 5 give way to 6 and 7 in one round."""
    trainer = run(tmp_path, HAND, ResampleRule(), reward=f"{BY_KIND}_and_row")
    assert trainer.numbers == [[3, 1], [6, 7]]
    assert trainer.column("resample/rounds") == [3, 2]
    assert trainer.column("resample/groups") == [4, 4]
    assert trainer.column("resample/taught_groups") == [2, 2]
    for reason, counts in {
        "all_right": [1, 0],
        "all_wrong": [1, 0],
        "equal": [0, 1],
        "unjudged": [0, 1],
        "outside": [0, 0],
        "surplus": [0, 0],
    }.items():
        assert trainer.column(f"resample/{reason}/groups") == counts, reason
    assert trainer.column("resample/passes") == pytest.approx([4 / 12, 8 / 12])
    assert trainer.column("frac_reward_zero_std") == [0, 0]
    assert trainer.column("resample/open_slots") == [0, 0]


def test_what_was_thrown_away_is_in_the_signal_account_and_the_tokens_seen(tmp_path: Path) -> None:
    trainer = run(tmp_path, HAND, ResampleRule())
    thrown = [
        sum(
            trainer.column(f"resample/{reason}/tokens")[i]
            for reason in ("all_right", "all_wrong", "equal", "unjudged")
        )
        for i in range(2)
    ]
    trained = [sum(map(len, tokens)) for tokens in trainer.tokens]
    assert trainer.column("signal/tokens") == [a + b for a, b in zip(thrown, trained, strict=True)]
    for share, out, kept in zip(trainer.column("signal/thrown_away"), thrown, trained, strict=True):
        assert share == pytest.approx(out / (out + kept))
    assert trainer.column("resample/tokens") == trainer.column("signal/tokens")
    assert trainer.column("resample/taught_tokens") == trained
    prompts = sum(4 * len(f"{i}+{i % 7}=") for i in range(8))
    assert trainer.column("num_tokens")[-1] == prompts + sum(thrown) + sum(trained)
    assert all(seconds > 0 for seconds in trainer.column("resample/all_right/seconds")[:1])
    assert len(trainer.column("resample/taught_tokens_per_second")) == 1  # from the second rollout on
    # rewards' own words belong to the responses that are trained on, failures to everything judged
    assert trainer.extra["kind"] == ["mixed"] * 8
    assert trainer.column("reward_failures/by_kind/none") == [0, 4] or trainer.column(
        "reward_failures/by_kind/none"
    ) == [4]
    assert trainer.column("resample/sampled_reward") == pytest.approx(
        [(4 + 2 + 0 + 2) / 16, (2 + 2 + 2) / 12]
    )


def test_without_silent_groups_it_is_the_plain_run(tmp_path: Path) -> None:
    kinds = ["mixed", "rare"] * 8
    plain = run(tmp_path / "a", kinds, None, shuffle_dataset=True)
    sampled = run(tmp_path / "b", kinds, ResampleRule(), shuffle_dataset=True)
    assert plain.numbers == sampled.numbers
    assert plain.tokens == sampled.tokens
    assert equal(plain, sampled)
    assert "signal/thrown_away" not in plain.state.log_history[0]
    assert not [name for name in plain.state.log_history[0] if name.startswith("resample/")]


def test_a_pass_rate_throws_groups_away_that_differ(tmp_path: Path) -> None:
    rule = ResampleRule(until="pass_rate", low=0.3, high=0.9)
    trainer = run(tmp_path, ["rare", "mixed", "some", "mixed"], rule, max_steps=1)
    assert trainer.numbers == [[2, 1]]  # 1/4 lies outside, 2/3 of the judged within
    assert trainer.column("resample/outside/groups") == [1]


SHORT = ["right", "mixed", "wrong", "half", "wrong", "wrong"]


def test_short_and_trained_keeps_equal_groups_in_the_divisor(tmp_path: Path) -> None:
    """The step is that of the same batch without dynamic sampling: the equal group has no gradient and is counted."""
    rule = ResampleRule(max_rounds=2)
    for objective in (GRPO(), DAPO()):
        name = type(objective).__name__
        sampled = run(tmp_path / name, SHORT, rule, max_steps=1, objective=objective)
        assert sampled.numbers == [[0, 1]]
        assert sampled.column("resample/open_slots") == [1]
        assert sampled.column("frac_reward_zero_std") == [0.5]
        plain = run(tmp_path / f"{name}-plain", SHORT, None, max_steps=1, objective=objective)
        assert equal(sampled, plain)


def test_short_and_refilled_repeats_the_group_that_teaches(tmp_path: Path) -> None:
    trainer = run(tmp_path, SHORT, ResampleRule(max_rounds=2, on_short="refill"), max_steps=1)
    assert trainer.numbers == [[1, 1]]
    assert trainer.tokens[0][:4] == trainer.tokens[0][4:]
    assert trainer.column("resample/repeated") == [1]
    assert trainer.column("resample/taught_groups") == [1]
    assert trainer.column("frac_reward_zero_std") == [0]


def test_short_and_stopped_says_why_at_a_checkpoint_and_goes_on_with_another_rule(tmp_path: Path) -> None:
    kinds = ["mixed", "mixed", *SHORT, "mixed", "mixed"]
    with pytest.raises(RewardError) as caught:
        run(tmp_path, kinds, ResampleRule(max_rounds=3, on_short="stop"))
    said = str(caught.value)
    assert "3 rounds gave 1 groups that teach, and a rollout needs 2" in said
    assert "2 because every response was wrong" not in said
    assert "The run is saved as of step 1" in said
    resumed = run(tmp_path, kinds, ResampleRule(max_rounds=6), resume=str(tmp_path / "checkpoint-1"))
    whole = run(tmp_path / "whole", kinds, ResampleRule(max_rounds=6))
    assert resumed.numbers == whole.numbers[1:] == [[8, 3]]
    assert equal(resumed, whole)


def test_prompts_that_run_out_end_the_rounds(tmp_path: Path) -> None:
    """Five rows: the second rollout crosses into the next pass, and no rollout draws a prompt twice."""
    trainer = run(tmp_path, ["wrong", "mixed", "wrong", "wrong", "wrong"], ResampleRule(max_rounds=50))
    assert trainer.numbers[0] == [0, 1]
    assert trainer.column("resample/groups") == [5, 5]
    assert trainer.column("resample/open_slots") == [1, 1]
    assert trainer.column("resample/rounds") == [4, 4]


def test_epochs_go_over_into_one_another(tmp_path: Path) -> None:
    kinds = ["mixed", "wrong"] * 6
    trainer = run(tmp_path, kinds, ResampleRule(max_rounds=9), max_steps=8, shuffle_dataset=True)
    assert all(number % 2 == 0 for numbers in trainer.numbers for number in numbers)
    assert trainer.column("resample/passes")[-1] > 1
    assert all(len(set(numbers)) == 2 for numbers in trainer.numbers)


@pytest.mark.parametrize(("staleness", "engine"), [(0, own), (1, CopyEngine), (2, CopyEngine)])
def test_a_resumed_run_is_the_uninterrupted_one(staleness: int, engine: Any, tmp_path: Path) -> None:
    """Two uses of a rollout of two micro-batches: step 3 lies within a window, step 4 between two."""
    settings = {
        "kinds": ["wrong", "mixed", "rare", "right", "half"] * 6,
        "rule": ResampleRule(max_rounds=3),
        "engine": engine,
        "staleness": staleness,
        "steps_per_generation": 2,
        "per_device_train_batch_size": 4,
        "shuffle_dataset": True,
        "max_steps": 8,
    }
    if staleness == 0:
        settings["num_iterations"] = 2
    whole = run(tmp_path, save_strategy="steps", save_steps=1, **settings)
    assert sum(whole.column("resample/groups")) > 2 * len(whole.column("resample/groups"))
    for step in (3, 4):
        resumed = run(tmp_path / str(step), resume=str(tmp_path / f"checkpoint-{step}"), **settings)
        assert equal(resumed, whole)
        assert resumed.numbers == whole.numbers[len(whole.numbers) - len(resumed.numbers) :]
        for name in ("loss", "resample/passes", "resample/tokens", "num_tokens"):
            later = [one[name] for one in whole.state.log_history if name in one and one["step"] > step]
            mine = [one[name] for one in resumed.state.log_history if name in one and one["step"] > step]
            assert mine == later, name


def test_ahead_the_next_rounds_begin_behind_the_extra_prompts(tmp_path: Path) -> None:
    trainer = run(tmp_path, HAND, ResampleRule(), engine=CopyEngine, staleness=1, max_steps=3)
    # round 1 was begun with 4 and 5 once round 0 had drawn 0 to 3; round 2 (8, 9) once 6 and 7 stood in for them
    assert trainer.numbers == [[3, 1], [6, 7], [8, 10]]
    assert trainer.column("rollout/staleness_max")[0] == 0
    assert max(trainer.column("rollout/staleness_max")) == 1


def test_a_checkpoint_without_it_is_refused_and_the_other_way_round(tmp_path: Path) -> None:
    run(tmp_path, HAND, None, save_strategy="steps", save_steps=1)
    run(tmp_path / "b", HAND, ResampleRule(), save_strategy="steps", save_steps=1)
    with pytest.raises(ValueError, match="written without rollout.resample"):
        run(tmp_path / "c", HAND, ResampleRule(), resume=str(tmp_path / "checkpoint-1"))
    with pytest.raises(ValueError, match="written with rollout.resample"):
        run(tmp_path / "d", HAND, None, resume=str(tmp_path / "b" / "checkpoint-1"))


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    rule = ResampleRule()
    trainer = trainer_in(tmp_path, HAND, objective=COPO())
    with pytest.raises(ValueError, match="COPO learns from groups with equal rewards too"):
        trainer.use_engine(own(trainer.model), RolloutPlan(resample=rule))
    trainer = trainer_in(tmp_path, HAND)
    with pytest.raises(ValueError, match="resample does not go with partial_budget"):
        trainer.use_engine(own(trainer.model), RolloutPlan(resample=rule, partial_budget=4))
    trainer = trainer_in(tmp_path, HAND)
    trainer.train_dataset = trainer.train_dataset.to_iterable_dataset()
    with pytest.raises(ValueError, match="rows of a stream"):
        trainer.use_engine(own(trainer.model), RolloutPlan(resample=rule))


# Two ranks


def split(processes: int, batch: int, rule: str, out: Path) -> dict[str, Any]:
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [*launcher, str(SUPPORT / "resample_run.py"), str(batch), rule, str(out)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(out, weights_only=True)


@pytest.mark.distributed
@pytest.mark.parametrize("rule", ["train", "refill"])
def test_two_ranks_sample_over_as_one_does(rule: str, tmp_path: Path) -> None:
    """Three groups of four on two ranks: the middle one straddles them, and groups that teach move to where they are
    trained on."""
    one = split(1, 12, rule, tmp_path / "one.pt")
    two = split(2, 6, rule, tmp_path / "two.pt")
    assert one["numbers"] == two["numbers"]
    assert one["tokens"] == two["tokens"]
    for name, values in one["metrics"].items():
        assert two["metrics"][name] == pytest.approx(values), name
    assert sum(one["metrics"]["resample/groups"]) > 3 * len(one["numbers"])
    for a, b in zip(two["weights"], one["weights"], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.distributed
def test_two_ranks_stop_together(tmp_path: Path) -> None:
    found = split(2, 6, "stop", tmp_path / "stopped.pt")
    assert "groups that teach, and a rollout needs 3" in found["error"]
