"""The teacher in training: what it says is its own log-probs, no reward is needed, and a resume is exact."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny_run import arguments, judged, rows
from torch.testing import assert_close
from transformers import TrainerCallback

from posttrain.observe.recorder import load_record
from posttrain.planning.memory import Launch, estimate
from posttrain.planning.shapes import read_shape
from posttrain.run.plan import make_plan
from posttrain.trainers import OPDConfig, OPDTrainer
from posttrain.trainers.models.load import character_tokenizer, scratch_llama


@pytest.fixture
def teacher(tokenizer, tmp_path):
    """A wider model than the policy, with another head of its own, as a folder."""
    folder = tmp_path / "teacher"
    model = scratch_llama(tokenizer, hidden_size=48, layers=1, heads=2, max_positions=128, seed=5)
    with torch.no_grad():
        model.lm_head.weight *= 10  # surer of itself than random weights are
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def build(model: Any, tokenizer: Any, folder: Any, rewards: Any = None, **settings: Any) -> Any:
    callbacks = settings.pop("callbacks", None)
    made = OPDConfig(**arguments(folder, **settings))
    return OPDTrainer(
        copy.deepcopy(model), rewards, made, rows(24), processing_class=tokenizer, callbacks=callbacks
    )


def weights(model: Any) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def test_the_gap_is_the_teachers_log_prob_minus_the_policys(tiny_model, tokenizer, tmp_path, teacher):
    made = build(
        tiny_model, tokenizer, tmp_path / "run", teacher_model=teacher, teacher_dtype="float32", max_steps=1,
        record_steps=[1],
        temperature=0.8,
    )  # fmt: skip
    seen = []
    scored_groups = made.scored_groups
    made.scored_groups = lambda groups, output: (
        seen.append((scored_groups(groups, output), output)) or seen[-1][0]
    )
    made.train()
    ((groups, output),) = seen
    whole = type(tiny_model).from_pretrained(teacher).double()
    expected = torch.zeros(groups.teacher_gap.shape).flatten(0, 1)
    for row in range(expected.size(0)):
        prompt = output["prompt_ids"][row][output["prompt_mask"][row].bool()]
        answer = output["completion_ids"][row][output["completion_mask"][row].bool()]
        ids = torch.cat([prompt, answer])[None]
        found = []
        for model in (whole, copy.deepcopy(tiny_model).double()):
            with torch.no_grad():
                logprobs = (model(ids).logits[0] / 0.8).log_softmax(-1)[len(prompt) - 1 : -1]
            found.append(logprobs.gather(1, answer[:, None])[:, 0])
        expected[row, : len(answer)] = (found[0] - found[1]).float()
    assert_close(groups.teacher_gap.flatten(0, 1), expected, rtol=1e-4, atol=1e-4)
    mask = groups.mask.bool()
    logged = made.state.log_history[0]
    assert logged["opd/reverse_kl"] == pytest.approx(-groups.teacher_gap[mask].mean().item(), abs=1e-5)
    assert "accuracy" not in logged  # nothing was judged right or wrong
    record = load_record(next((tmp_path / "records").glob("*.safetensors")))
    assert record.groups is not None
    assert_close(record.groups.teacher_gap, groups.teacher_gap)  # what replay needs to ask the method again


def test_the_policy_comes_nearer_to_its_teacher_and_the_teacher_stays(
    tiny_model, tokenizer, tmp_path, teacher
):
    made = build(
        tiny_model, tokenizer, tmp_path, teacher_model=teacher, max_steps=25, learning_rate=1e-2,
        lr_scheduler_type="constant", per_device_train_batch_size=96,
    )  # fmt: skip
    before = weights(made.accelerator.unwrap_model(made.teacher))
    made.train()
    kl = [line["opd/reverse_kl"] for line in made.state.log_history if "opd/reverse_kl" in line]
    assert sum(kl[-5:]) < 0.85 * sum(kl[:5])
    after = weights(made.accelerator.unwrap_model(made.teacher))
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert not any(p.requires_grad for p in made.teacher.parameters())


def test_the_policy_as_its_own_teacher_does_not_move(tiny_model, tokenizer, tmp_path):
    made = OPDTrainer(
        copy.deepcopy(tiny_model), None, OPDConfig(**arguments(tmp_path, max_steps=1)), rows(24),
        processing_class=tokenizer, teacher=copy.deepcopy(tiny_model),
    )  # fmt: skip
    made.train()
    assert made.state.log_history[0]["opd/reverse_kl"] == pytest.approx(0.0, abs=1e-6)
    assert_close(weights(made.model), weights(tiny_model), rtol=0, atol=2e-3)  # Adam makes steps of rounding
    assert made.state.log_history[0]["grad_norm"] < 1e-5


def test_rewards_are_measured_at_coefficient_zero_and_learned_from_above(
    tiny_model, tokenizer, tmp_path, teacher
):
    shared = {"teacher_model": teacher, "optim": "sgd", "learning_rate": 0.1, "max_steps": 2}
    made = []
    for name, rewards, coefficient in (("a", None, 0.0), ("b", judged, 0.0), ("c", judged, 1.0)):
        made.append(build(tiny_model, tokenizer, tmp_path / name, rewards, **shared, reward_coef=coefficient))
        made[-1].train()  # one after the other: each begins by its own seed
    alone, measured, learned = made
    assert alone.state.log_history[0]["reward"] == 0.0
    assert measured.state.log_history[0]["reward"] != 0.0
    assert_close(weights(measured.model), weights(alone.model), rtol=0, atol=0)
    assert (
        max((a - b).abs().max() for a, b in zip(weights(learned.model), weights(alone.model), strict=True))
        > 1e-6
    )
    with pytest.raises(ValueError, match="no reward: pass reward_funcs"):
        build(tiny_model, tokenizer, tmp_path, None, teacher_model=teacher, reward_coef=1.0)


def test_other_tokenizers_and_no_teacher_are_refused(tiny_model, tokenizer, tmp_path, teacher):
    other = character_tokenizer("0123456789>")
    scratch_llama(other, hidden_size=32, layers=1, heads=2, seed=1).save_pretrained(tmp_path / "other")
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="another tokenizer than the policy"):
        build(tiny_model, tokenizer, tmp_path, teacher_model=str(tmp_path / "other"))
    with pytest.raises(ValueError, match="no teacher: name its folder in teacher_model"):
        build(tiny_model, tokenizer, tmp_path)


class StopAfter(TrainerCallback):
    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_step_end(self, args, state, control, **_):
        control.should_training_stop = state.global_step >= self.steps


def test_a_resumed_run_ends_where_an_unbroken_one_does(tiny_model, tokenizer, tmp_path, teacher):
    """Stopped in the middle of a window, whose advantages hold what the teacher said."""
    plan = {
        "teacher_model": teacher, "max_steps": 4, "save_strategy": "steps", "save_steps": 1, "num_iterations": 2,
    }  # fmt: skip
    whole = build(tiny_model, tokenizer, tmp_path / "whole", **plan)
    whole.train()
    build(tiny_model, tokenizer, tmp_path / "parts", callbacks=[StopAfter(1)], **plan).train()
    again = build(tiny_model, tokenizer, tmp_path / "parts", **plan)
    again.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-1"))
    assert all(torch.equal(a, b) for a, b in zip(weights(again.model), weights(whole.model), strict=True))


def test_plan_asks_for_a_teacher_and_for_no_rewards(load, tmp_path, teacher):
    def recipe(**changes: Any) -> Any:
        changed = {"method": "opd", "objective": {"teacher_model": teacher, "clip_high": 0.2}, **changes}
        return load(rewards=None, model={"scratch": {}}, **changed)

    found = make_plan(recipe())
    assert found.refusals == []
    assert found.rewards == [
        "none, and method 'opd' needs none as it is set; 'no_reward' stands for them in the logs"
    ]
    narrow = load(method="opd", rewards=None, objective={"teacher_model": teacher})
    assert any("another tokenizer than the model" in line for line in make_plan(narrow).refusals)
    lacking = make_plan(load(method="opd", rewards=None, model={"scratch": {}}, objective={"clip_high": 0.2}))
    assert any("method 'opd' has no teacher" in line for line in lacking.refusals)
    measured = make_plan(load(method="opd", model={"scratch": {}}, objective={"teacher_model": teacher}))
    assert any("reward_coef is 0: the rewards are measured" in line for line in measured.warnings)
    shape = read_shape(recipe().model)
    assert shape is not None
    alone = estimate(load(rewards=[{"name": "exact_match"}]), shape, Launch(1, 0, None, "cuda"))
    beside = estimate(recipe(), shape, Launch(1, 0, None, "cuda"))
    assert beside.reference > alone.reference == 0


def test_rewards_are_asked_for_where_they_count(refused, teacher):
    lines = refused(method="opd", rewards=None, objective={"teacher_model": teacher, "reward_coef": 1.0})
    assert any("rewards: the section is missing" in line for line in lines)
