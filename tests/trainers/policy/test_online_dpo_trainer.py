"""Online DPO in training: pairs stay together, the margin is that of two full forwards, and a resume is exact."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny_run import arguments, judged, rows
from torch.nn.functional import logsigmoid
from transformers import TrainerCallback

from posttrain.objectives.online_dpo import OnlineDPO
from posttrain.observe.recorder import load_record
from posttrain.observe.replay import replay_step
from posttrain.trainers import OnlineDPOConfig, OnlineDPOTrainer

TWO_STEPS = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "steps_per_generation": 4}
"""A rollout of 16 responses in two optimizer steps of two micro-batches, each a group."""


def build(model: Any, tokenizer: Any, folder: Any, **settings: Any) -> Any:
    callbacks = settings.pop("callbacks", None)
    made = OnlineDPOConfig(**arguments(folder, **{"beta": 0.5, **settings}))
    return OnlineDPOTrainer(
        copy.deepcopy(model), judged, made, rows(24), processing_class=tokenizer, callbacks=callbacks
    )


def weights(model: Any) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def test_loss_and_replay_are_those_of_two_full_forwards(tiny_model, tokenizer, tmp_path):
    """The third optimizer step: the second rollout's first, whose policy has moved away from its reference."""
    made = build(
        tiny_model, tokenizer, tmp_path / "run", max_steps=3, learning_rate=0.1, optim="sgd", record_steps=[3],
        **TWO_STEPS,
    )  # fmt: skip
    policy_then: list[Any] = []

    class Keep(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            policy_then.append(copy.deepcopy(tiny_model).double())
            policy_then[-1].load_state_dict(made.accelerator.unwrap_model(made.model).state_dict())

    made.add_callback(Keep())
    made.train()
    record = load_record(next((tmp_path / "records").glob("*.safetensors")))
    assert record.groups is not None
    assert record.rows is not None
    of_step = torch.cat(record.rows)
    assert (
        of_step.reshape(-1, 4).remainder(4).tolist() == [[0, 1, 2, 3]] * 2
    )  # whole groups, one a micro-batch

    reference, values = copy.deepcopy(tiny_model).double(), []
    rollout, rewards = made.rollout, record.groups.rewards
    for group in of_step.reshape(-1, 4)[:, 0].tolist():
        best, worst = (group + int(one(rewards[group // 4])) for one in (torch.argmax, torch.argmin))
        if rewards.flatten()[best] == rewards.flatten()[worst]:
            continue
        margins = []
        for row in (best, worst):
            prompt = tokenizer(rollout.prompts[row])["input_ids"]
            ids = torch.tensor([[*prompt, *rollout.completion_ids[row]]])
            both = []
            for model in (policy_then[1], reference):
                with torch.no_grad():
                    logprobs = model(ids).logits[0].log_softmax(-1)[len(prompt) - 1 : -1]
                both.append(logprobs.gather(1, ids[0, len(prompt) :, None]).sum())
            margins.append(both[0] - both[1])
        values.append(-logsigmoid(0.5 * (margins[0] - margins[1])))
    assert values
    logged = made.state.log_history[2]
    assert logged["online_dpo/pair_loss"] == pytest.approx(float(torch.stack(values).mean()), abs=1e-5)
    assert logged["policy_loss"] == pytest.approx(float(torch.stack(values).sum()) / 2, abs=1e-5)
    assert abs(logged["online_dpo/margin"]) > 1e-4
    names = ("carried", "left_out", "equal_rewards", "unjudged")
    assert sum(logged.get(f"signal/{name}", 0.0) for name in names) == pytest.approx(1.0)
    assert logged["signal/left_out"] > 0

    again = replay_step(record, OnlineDPO(), "online_dpo")
    assert again.loss == pytest.approx(logged["policy_loss"], abs=1e-6)
    other = replay_step(record, OnlineDPO(pairs="drawn"), "drawn")
    assert other.signal.as_dict()["carried"] > again.signal.as_dict()["carried"]


class StopAfter(TrainerCallback):
    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_step_end(self, args, state, control, **_):
        control.should_training_stop = state.global_step >= self.steps


def test_a_resumed_run_ends_where_an_unbroken_one_does(tiny_model, tokenizer, tmp_path):
    """Stopped in the middle of a window, whose second step holds groups that the first did not."""
    plan = {
        "max_steps": 5, "save_strategy": "steps", "save_steps": 1, "pairs": "drawn", "parl_coef": 0.3, **TWO_STEPS,
    }  # fmt: skip
    whole = build(tiny_model, tokenizer, tmp_path / "whole", **plan)
    whole.train()
    assert max(one.get("online_dpo/parl_size", 0.0) for one in whole.state.log_history) > 1e-3
    build(tiny_model, tokenizer, tmp_path / "parts", callbacks=[StopAfter(3)], **plan).train()
    again = build(tiny_model, tokenizer, tmp_path / "parts", **plan)
    again.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-3"))
    assert all(torch.equal(a, b) for a, b in zip(weights(again.model), weights(whole.model), strict=True))
    moved = max((a - b).abs().max() for a, b in zip(weights(whole.model), weights(tiny_model), strict=True))
    assert moved > 1e-3


def test_what_would_part_a_pair_and_no_reference_stop_the_run(tiny_model, tokenizer, tmp_path):
    parted = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 1, "steps_per_generation": 4}
    with pytest.raises(ValueError, match="one answer of a pair without the other"):
        build(tiny_model, tokenizer, tmp_path, **parted).train()
    with pytest.raises(ValueError, match="set beta above 0"):
        build(tiny_model, tokenizer, tmp_path, beta=0.0).train()


def test_a_response_that_is_cut_off_is_in_no_pair_where_it_is_masked(tiny_model, tokenizer, tmp_path):
    made = build(
        tiny_model, tokenizer, tmp_path, max_steps=1, mask_truncated_completions=True, pairs="drawn",
        per_device_train_batch_size=96,
    )  # fmt: skip
    seen: list[Any] = []
    scored = made.scored_groups
    made.scored_groups = lambda groups, output: seen.append((scored(groups, output), output)) or seen[-1][0]
    made.train()
    ((groups, output),) = seen
    cut = output["completion_mask"].sum(1) == 0
    assert cut.any()
    assert not cut.all()
    streams = made.objective.advantages(groups)
    assert (streams["advantages"].flatten()[cut] == 0).all()
