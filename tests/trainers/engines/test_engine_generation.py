"""A trainer with an engine: synchronous, ahead, in parts; proved, stopped and resumed. No vLLM: the engine is a copy
of the model that knows only what it was sent."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from places import SUPPORT
from rollout_fakes import CopyEngine, small_model

from posttrain.objectives.bapo import BAPO
from posttrain.rollout.base import EngineLost, WeightsDiffer, WeightsLost
from posttrain.rollout.transformers_engine import TransformersEngine
from posttrain.trainers.engines.rollout_plan import RolloutPlan
from posttrain.trainers.models.load import character_tokenizer
from posttrain.trainers.policy.trainer import PolicyTrainer
from posttrain.trainers.seam.config import PolicyConfig

STEPS = 6


JUDGED = f"{SUPPORT / 'rollout_reward.py'}:judged"


class Noting(PolicyTrainer):
    """Keeps every rollout buffer and the losses."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self.outputs: list[dict[str, Any]] = []
        super().__init__(*arguments, **named)

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        if self.model.training:
            self.outputs.append(
                {k: copy.deepcopy(v) for k, v in output.items()} | {"step": self.state.global_step}
            )
        return output

    @property
    def losses(self) -> list[float]:
        return [float(one["loss"]) for one in self.state.log_history if "loss" in one]

    def weights(self) -> list[torch.Tensor]:
        return [parameter.detach().clone() for parameter in self.model.parameters()]


def trainer_in(folder: Path, reward: str = JUDGED, **changes: Any) -> Noting:
    rows = [{"prompt": f"{i}+{i % 7}=", "number": i} for i in range(60)]
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
        "max_completion_length": 10,
        "learning_rate": 3e-3,
        "max_steps": STEPS,
        "seed": 3,
        **changes,
    }
    model = small_model(scale=6.0)
    return Noting(
        model.train(),
        reward,
        PolicyConfig(**arguments),
        Dataset.from_list(rows),
        processing_class=character_tokenizer(),
        objective=BAPO(),
    )


def run(folder: Path, plan: RolloutPlan | None = None, engine: Any = CopyEngine, **changes: Any) -> Noting:
    trainer = trainer_in(folder, **changes)
    trainer.use_engine(engine(trainer.model), plan)
    trainer.train()
    return trainer


def own(model: Any) -> TransformersEngine:
    return TransformersEngine.of(model, pad_token_id=0)


def column(trainer: Noting, name: str) -> list[Any]:
    return [one[name] for one in trainer.state.log_history if name in one]


@pytest.fixture(scope="module")
def synchronous(tmp_path_factory: pytest.TempPathFactory) -> Noting:
    return run(tmp_path_factory.mktemp("sync"), engine=own)


def test_staleness_0_is_the_synchronous_run(synchronous: Noting, tmp_path: Path) -> None:
    copied = run(tmp_path)
    for a, b in zip(copied.outputs, synchronous.outputs, strict=True):
        assert torch.equal(a["completion_ids"], b["completion_ids"])
        assert (a["weight_version"][a["completion_mask"].bool()] == a["step"]).all()
    assert copied.losses == pytest.approx(synchronous.losses, abs=1e-5)
    for a, b in zip(copied.weights(), synchronous.weights(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=0)  # Adam divides rounding by rounding
    assert column(copied, "rollout/staleness") == [0.0] * STEPS
    assert max(map(float, column(copied, "rollout/proof_gap"))) < 1e-4


def test_the_old_logprobs_are_the_sampling_ones(tmp_path: Path) -> None:
    trainer = run(tmp_path, max_steps=2)
    for output in trainer.outputs:
        assert output["old_per_token_logps"] is not None
        torch.testing.assert_close(
            output["old_per_token_logps"], output["sampling_per_token_logps"], atol=0, rtol=0
        )


@pytest.mark.parametrize(("staleness", "lags"), [(1, [0, 1, 1, 1, 1, 1]), (2, [0, 1, 2, 1, 2, 1])])
def test_ahead_each_sample_carries_the_version_that_made_it(
    staleness: int, lags: list[int], tmp_path: Path
) -> None:
    trainer = run(tmp_path, RolloutPlan(staleness=staleness))
    for output, lag in zip(trainer.outputs, lags, strict=True):
        mask = output["completion_mask"].bool()
        assert (output["weight_version"][mask] == output["step"] - lag).all()
        assert (output["weight_version"][~mask] == -1).all()
    assert [float(v) for v in column(trainer, "rollout/staleness_max")] == lags


def test_ahead_the_tokens_are_scored_by_the_weights_that_made_them(tmp_path: Path) -> None:
    """Sampling log-probs of round n are those of the policy after step n - 1."""
    history: list[Any] = []

    class Remembering(CopyEngine):
        def update_weights(self, named_tensors, version):
            super().update_weights(named_tensors, version)
            history.append(copy.deepcopy(self.model))

    trainer = run(tmp_path, RolloutPlan(staleness=1), engine=Remembering, max_steps=4)
    for number, output in enumerate(trainer.outputs):
        model = history[max(number - 1, 0)]
        ids = torch.cat([output["prompt_ids"], output["completion_ids"]], 1)
        mask = torch.cat([output["prompt_mask"], output["completion_mask"]], 1)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits
        length = output["completion_ids"].size(1)
        scored = (
            logits[:, -length - 1 : -1].log_softmax(-1).gather(2, output["completion_ids"][..., None])[..., 0]
        )
        keep = output["completion_mask"].bool()
        torch.testing.assert_close(output["sampling_per_token_logps"][keep], scored[keep], atol=1e-4, rtol=0)


def test_a_run_ahead_repeats_itself(tmp_path: Path) -> None:
    first = run(tmp_path / "a", RolloutPlan(staleness=2))
    second = run(tmp_path / "b", RolloutPlan(staleness=2))
    assert first.losses == second.losses
    assert all(torch.equal(a, b) for a, b in zip(first.weights(), second.weights(), strict=True))


def test_the_end_of_an_epoch_starts_the_next_one_afresh(tmp_path: Path) -> None:
    """Rows are seen ahead within an epoch only, so its first round is synchronous. 60 rows are three rounds of 20."""
    trainer = run(tmp_path, RolloutPlan(staleness=1), per_device_train_batch_size=80, max_steps=5)
    assert [float(v) for v in column(trainer, "rollout/staleness_max")] == [0, 1, 1, 0, 1]


def test_a_rollout_over_several_steps_needs_no_forward_for_its_old_logprobs(tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path, steps_per_generation=2, per_device_train_batch_size=4)
    calls: list[int] = []
    score = trainer.scorer.score

    def counted(*arguments, **named):
        calls.append(int(torch.is_grad_enabled()))
        return score(*arguments, **named)

    trainer.use_engine(CopyEngine(trainer.model))
    trainer.scorer.score = counted
    trainer.train()
    assert calls.count(1) == STEPS
    assert calls.count(0) == STEPS // 2  # the proof's own, one a sync
    for output in trainer.outputs:
        assert torch.equal(output["old_per_token_logps"], output["sampling_per_token_logps"])


@pytest.mark.parametrize("mode", ["token_truncate", "sequence_mask"])
def test_a_correction_starts_the_ratio_from_the_trainers_own_logprobs(mode: str, tmp_path: Path) -> None:
    from posttrain.rollout.importance import importance_ratio

    plan = RolloutPlan(staleness=1, importance_correction=mode, importance_clip_max=1.5)
    trainer = run(tmp_path, plan, max_steps=3)
    for output in trainer.outputs:
        mask = output["completion_mask"]
        want = importance_ratio(
            output["old_per_token_logps"], output["sampling_per_token_logps"], mask, mode, 1.5
        )
        torch.testing.assert_close(output["importance_sampling_ratio"], want)
    fresh, stale = trainer.outputs[0], trainer.outputs[2]
    keep = fresh["completion_mask"].bool()
    torch.testing.assert_close(
        fresh["old_per_token_logps"][keep], fresh["sampling_per_token_logps"][keep], atol=1e-4, rtol=0
    )
    keep = stale["completion_mask"].bool()
    moved = (stale["old_per_token_logps"] - stale["sampling_per_token_logps"])[keep].abs().max()
    assert moved > 1e-3  # the policy is one step further than the samples
    assert float(column(trainer, "sampling/sampling_logp_difference/max")[-1]) == pytest.approx(
        float(moved), rel=1e-2
    )


def test_a_sync_for_an_evaluation_is_no_held_out_result(tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path, max_steps=1)
    trainer.use_engine(CopyEngine(trainer.model))
    found = trainer.evaluate(eval_dataset=trainer.train_dataset.select(range(8)))
    assert "eval_reward" in found
    assert not [name for name in found if "rollout/" in name]
    trainer.train()
    assert (
        len(column(trainer, "rollout/proof_gap")) == 1
    )  # of the sync before the evaluation: weights of step 0


# Proof


@pytest.mark.parametrize("skipped", ["model.layers.1.mlp.up_proj.weight", "model.embed_tokens.weight"])
def test_a_tensor_that_does_not_arrive_stops_the_run_by_name(skipped: str, tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path, learning_rate=3e-2)
    engine = CopyEngine(trainer.model)
    trainer.use_engine(engine, RolloutPlan(staleness=1))
    engine.before_generate = lambda: engine.skip.add(skipped) if engine.version == 1 else None
    with pytest.raises(WeightsDiffer) as caught:
        trainer.train()
    assert f"First tensor that differs: {skipped} (other values than the trainer's)" in str(caught.value)
    assert "weight version 2" in str(caught.value)
    assert "limit 0.001" in str(caught.value)


def test_a_sync_that_never_happens_is_caught(tmp_path: Path) -> None:
    class Forgetful(CopyEngine):
        def update_weights(self, named_tensors, version):
            if version == 0:
                super().update_weights(named_tensors, version)
            self.version = version

    with pytest.raises(WeightsDiffer, match="First tensor that differs: model.embed_tokens.weight"):
        run(tmp_path, engine=Forgetful, learning_rate=3e-2)


def test_an_engine_that_computes_otherwise_is_told_from_one_with_other_weights(tmp_path: Path) -> None:
    class Loud(CopyEngine):
        def generate(self, prompts, sampling):
            with torch.no_grad():
                self.model.lm_head.weight.mul_(1.2)
            found = super().generate(prompts, sampling)
            with torch.no_grad():
                self.model.lm_head.weight.div_(1.2)
            return found

    with pytest.raises(WeightsDiffer, match="All 21 tensors arrived as they were sent"):
        run(tmp_path / "a", engine=Loud)
    trainer = run(tmp_path / "b", RolloutPlan(proof_limit=50.0), engine=Loud, max_steps=2)
    assert float(column(trainer, "rollout/proof_gap")[0]) > 1e-3


# Faults


class Mortal(CopyEngine):
    """Answers a number of calls, then never again."""

    lives = 10**6

    def generate(self, prompts, sampling):
        type(self).lives -= 1
        if type(self).lives < 0:
            raise EngineLost("rollout server http://a:1: no usable answer")
        return super().generate(prompts, sampling)


@pytest.mark.parametrize("plan", [RolloutPlan(), RolloutPlan(staleness=1)])
def test_a_lost_engine_stops_at_a_checkpoint_and_the_run_resumes(plan: RolloutPlan, tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", plan, engine=Mortal)
    Mortal.lives = 6  # a probe and a round or more each step
    with pytest.raises(EngineLost) as caught:
        run(tmp_path / "cut", plan, engine=Mortal)
    Mortal.lives = 10**6
    (saved,) = (tmp_path / "cut").glob("checkpoint-*")
    step = int(saved.name.rpartition("-")[2])
    assert 0 < step < STEPS
    assert f"saved as of step {step} in {saved}" in str(caught.value)
    assert "--resume" in str(caught.value)
    resumed = trainer_in(tmp_path / "cut")
    resumed.use_engine(Mortal(resumed.model), plan)
    resumed.train(resume_from_checkpoint=str(saved))
    assert resumed.state.global_step == STEPS
    if plan.staleness == 0:  # ahead, the lost round is made again by newer weights
        assert resumed.losses[-1] == pytest.approx(whole.losses[-1], abs=1e-6)
        for a, b in zip(resumed.weights(), whole.weights(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_an_engine_lost_before_the_first_step_leaves_nothing_to_resume(tmp_path: Path) -> None:
    Mortal.lives = 0
    with pytest.raises(EngineLost, match="nothing to resume"):
        run(tmp_path, engine=Mortal)
    Mortal.lives = 10**6
    assert not list(tmp_path.glob("checkpoint-*"))


@pytest.mark.parametrize("plan", [RolloutPlan(), RolloutPlan(staleness=1)])
def test_a_restarted_server_is_sent_the_weights_again(plan: RolloutPlan, tmp_path: Path) -> None:
    class Restarting(CopyEngine):
        restarts = 1

        def generate(self, prompts, sampling):
            if self.version == 2 and len(prompts) > 2 and self.restarts:
                self.restarts -= 1
                raise WeightsLost("restarted")
            return super().generate(prompts, sampling)

    trainer = run(tmp_path, plan, engine=Restarting)
    assert trainer.state.global_step == STEPS
    assert trainer.engine is not None
    assert trainer.engine.restarts == 0


@pytest.mark.parametrize(
    "plan",
    [
        RolloutPlan(staleness=2),
        RolloutPlan(partial_budget=4),
        RolloutPlan(staleness=1, partial_budget=4),
    ],
)
def test_a_resumed_run_is_the_uninterrupted_one(plan: RolloutPlan, tmp_path: Path) -> None:
    """What was generated ahead, or is half written, lies in the checkpoint."""
    whole = run(tmp_path, plan, save_strategy="steps", save_steps=3)
    resumed = trainer_in(tmp_path)
    resumed.use_engine(CopyEngine(resumed.model), plan)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    for a, b in zip(resumed.outputs, whole.outputs[3:], strict=True):
        assert torch.equal(a["completion_ids"], b["completion_ids"])
        assert torch.equal(a["weight_version"], b["weight_version"])
    assert all(torch.equal(a, b) for a, b in zip(resumed.weights(), whole.weights(), strict=True))


# Partial rollouts


def test_a_cut_completion_carries_the_version_of_each_token(tmp_path: Path) -> None:
    trainer = run(tmp_path, RolloutPlan(partial_budget=4))
    mixed = 0
    for output in trainer.outputs:
        for versions, mask in zip(output["weight_version"], output["completion_mask"], strict=True):
            marked = versions[mask.bool()].tolist()
            assert marked == sorted(marked)
            assert marked[-1] <= output["step"]
            mixed += len(set(marked)) > 1
            for version in set(marked):
                assert marked.count(version) <= 12
    assert mixed > 0
    rows = [one for output in trainer.outputs for one in output["row"].tolist()]
    assert len(rows) == STEPS * 8


def test_partial_rollouts_keep_groups_and_columns_together(tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path, reward=JUDGED + "_by_row")
    trainer.use_engine(CopyEngine(trainer.model), RolloutPlan(partial_budget=4))
    trainer.train()
    rollout = trainer.rollout
    assert rollout is not None
    assert len(set(rollout.columns["number"])) == 2
    for start in (0, 4):
        assert len(set(rollout.columns["number"][start : start + 4])) == 1


def test_with_one_weight_version_cutting_changes_no_distribution(tmp_path: Path) -> None:
    """At learning rate 0 the parts of a completion are scored like an uncut one."""
    trainer = run(tmp_path, RolloutPlan(partial_budget=3), learning_rate=0.0, max_steps=3)
    for output in trainer.outputs:
        ids = torch.cat([output["prompt_ids"], output["completion_ids"]], 1)
        mask = torch.cat([output["prompt_mask"], output["completion_mask"]], 1)
        length = output["completion_ids"].size(1)
        scored, _, _ = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, length)
        keep = output["completion_mask"].bool()
        torch.testing.assert_close(output["sampling_per_token_logps"][keep], scored[keep], atol=1e-4, rtol=0)


# Refusals


def test_plans_an_engine_cannot_keep_are_refused(tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path, top_p=0.9)
    with pytest.raises(ValueError, match="top_p make the sampled distribution another one"):
        trainer.use_engine(CopyEngine(trainer.model), RolloutPlan(staleness=1))
    with pytest.raises(ValueError, match="staleness 1 needs an engine in a process of its own"):
        trainer.use_engine(own(trainer.model), RolloutPlan(staleness=1))
    with pytest.raises(ValueError, match="partial_budget 10 must lie between"):
        trainer.use_engine(CopyEngine(trainer.model), RolloutPlan(partial_budget=10))
    uneven = trainer_in(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    uneven.args.steps_per_generation = 3
    with pytest.raises(ValueError, match="6 completions per process are no multiple of 4"):
        uneven.use_engine(CopyEngine(uneven.model), RolloutPlan(partial_budget=4))


def test_a_truncated_distribution_is_not_taken_for_the_policys(tmp_path: Path) -> None:
    trainer = run(tmp_path, top_k=5, max_steps=2)
    for output in trainer.outputs:
        assert "old_per_token_logps" not in output  # the trainer's own, by its forward in the loss
