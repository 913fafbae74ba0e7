"""COPO and CAPO through the trainer: what the probe reads, what rejection removes, resume, answers."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from letter_rewards import judged_with_answers, same_for_a_prompt
from peft import LoraConfig
from tiny_run import arguments, judged, rows
from torch.testing import assert_close

from posttrain.objectives.base import TokenBatch
from posttrain.objectives.copo import COPO
from posttrain.observe.signal import account_objective
from posttrain.recipe import load_recipe
from posttrain.run.plan import make_plan
from posttrain.trainers.forward.base import Rows
from posttrain.trainers.policy import bindings
from posttrain.trainers.policy.loss_metrics import LossMetrics

LORA = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
TEMPERATURE = 0.7


def spied(name: str, model: Any, tokenizer: Any, folder: Path, reward: Any = judged, **settings: Any):
    """A trainer that keeps, for each micro-batch, (inputs, TokenBatch) as its forward made them."""
    trainer_class = getattr(bindings, f"{name}Trainer")
    seen: list[tuple[dict[str, Any], Any]] = []

    class Spied(trainer_class):  # type: ignore[misc, valid-type]  # the class is the argument
        def _read(self, model: Any, inputs: Any):
            batch, *rest = super()._read(model, inputs)
            if batch.logprobs.requires_grad:
                batch.logprobs.retain_grad()
            seen.append((dict(inputs), batch))
            return batch, *rest

    peft_config = settings.pop("peft_config", None)
    config = getattr(bindings, f"{name}Config")(**arguments(folder, **settings))
    trainer = Spied(
        copy.deepcopy(model), reward, config, rows(24), processing_class=tokenizer, peft_config=peft_config
    )
    return trainer, seen


@pytest.mark.parametrize("peft_config", [None, LORA], ids=["full", "lora"])
def test_the_probe_reads_the_position_that_predicts_the_token(peft_config, tiny_model, tokenizer, tmp_path):
    trainer, seen = spied(
        "CAPO",
        tiny_model,
        tokenizer,
        tmp_path,
        num_candidates=5,
        learning_rate=0.0,  # the weights that are compared with are those of the forward
        max_steps=1,
        temperature=TEMPERATURE,
        peft_config=peft_config,
    )
    trainer.train()
    inputs, batch = seen[0]
    policy = trainer.accelerator.unwrap_model(trainer.model)
    causal_lm = policy.get_base_model() if peft_config is not None else policy
    ids, mask = Rows.of_buffer(inputs).joined
    length = inputs["completion_ids"].size(1)
    with torch.no_grad():
        whole = (
            type(causal_lm).forward(causal_lm, input_ids=ids, attention_mask=mask).logits
        )  # the class's own, without any fused head
        again = causal_lm.lm_head(batch.forward["hidden"])
    logits = whole[:, -length - 1 : -1] / TEMPERATURE
    tokens = batch.mask > 0
    assert_close(again[tokens], logits[tokens], rtol=1e-5, atol=1e-5)
    late = whole[:, -length:] / TEMPERATURE
    assert not torch.allclose(again[tokens], late[tokens], atol=1e-2)  # one position later
    logprobs = logits.log_softmax(-1).gather(-1, inputs["completion_ids"].unsqueeze(-1)).squeeze(-1)
    assert_close(batch.logprobs.detach()[tokens], logprobs[tokens], rtol=1e-5, atol=1e-5)

    ids, values = (batch.forward[f"candidate_{what}"][tokens] for what in ("ids", "logits"))
    assert_close(values, logits[tokens].gather(-1, ids), rtol=1e-5, atol=1e-5)
    assert (ids == batch.forward["actions"][tokens].unsqueeze(-1)).any(-1).all()
    best = logits[tokens].topk(4).indices  # the fifth gives way to the sampled id, where that ranks below
    assert torch.equal(ids[:, :4], best)


def test_rejected_tokens_leave_numerator_and_denominator(tiny_model, tokenizer, tmp_path):
    common = {"optimizer_model": "sgd", "objective_threshold": 0.0, "learning_rate": 0.05, "max_steps": 1}
    trainer, seen = spied("CAPO", tiny_model, tokenizer, tmp_path, policy_threshold=0.0, **common)
    trainer.train()
    shifts = trainer.objective.prepare(_with_rate(seen[0][1], 0.05)).forward["policy_shift"]
    # a response's shifts go with its advantage: only a threshold inside one response splits it
    threshold = shifts[shifts.mean(1).argsort()[len(shifts) // 2]].median().item()

    trainer, seen = spied("CAPO", tiny_model, tokenizer, tmp_path, policy_threshold=threshold, **common)
    trainer.train()
    _, batch = seen[0]
    kept = (shifts < threshold) & (batch.mask > 0)
    rejected = (batch.mask > 0) & ~kept
    share = float(rejected.sum() / batch.mask.sum())
    assert 0.02 < share < 0.9

    losses = -batch.advantages * torch.ones_like(batch.logprobs)  # the surrogate at ratio 1
    by_hand = ((losses * kept).sum(1) / kept.sum(1).clamp(min=1)).mean()
    log = next(entry for entry in trainer.state.log_history if "policy_loss" in entry)
    assert log["policy_loss"] == pytest.approx(by_hand.item(), abs=1e-6)
    assert log["kept_share"] == pytest.approx(1 - share, abs=1e-6)
    diluted = ((losses * kept).sum(1) / batch.mask.sum(1)).mean()
    assert abs(diluted - by_hand) > 1e-3  # keeping them in the divisor would be another number

    gradient = batch.logprobs.grad
    assert (gradient[rejected] == 0).all()
    expected = losses * kept / kept.sum(1, keepdim=True).clamp(min=1) / len(kept)
    assert_close(gradient, expected, rtol=1e-5, atol=1e-8)


def _with_rate(batch: Any, rate: float) -> Any:
    return replace(batch, step={"learning_rate": rate, "peak_learning_rate": rate})


STEPS = 6
RESUMED = {
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 3,
    "max_steps": STEPS,
    "save_strategy": "steps",
    "save_steps": 1,
    "calibrate": True,
    "calibration_steps": 2,
    "target_rejection": 0.2,
    "num_candidates": 8,
    "lr_scheduler_type": "constant",  # as it decays, so do the shifts, and nothing is rejected
}


@pytest.fixture(scope="module")
def whole_run(tokenizer, tmp_path_factory):
    from posttrain.trainers.models.load import scratch_llama

    model = scratch_llama(tokenizer, hidden_size=32, layers=2, heads=2, max_positions=64, seed=0)
    folder = tmp_path_factory.mktemp("whole")
    trainer, _ = spied("CAPO", model, tokenizer, folder, **RESUMED)
    trainer.train()
    return model, folder, trainer


def weights(trainer: Any) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in trainer.model.parameters()]


def test_the_run_rejects_once_calibrated(whole_run):
    kept = [log["kept_share"] for log in whole_run[2].state.log_history if "kept_share" in log]
    assert kept[:3] == [1.0, 1.0, 1.0]  # one cold step, two measured
    assert all(0.3 < share < 1.0 for share in kept[3:])


def test_a_held_calibration_leaves_the_weights_alone(whole_run, tokenizer, tmp_path):
    model, *_ = whole_run
    settings = {**RESUMED, "calibration_holds": True, "save_strategy": "no", "weight_decay": 0.0}
    trainer, _ = spied("CAPO", model, tokenizer, tmp_path, **(settings | {"max_steps": 3}))
    trainer.train()
    for mine, before in zip(weights(trainer), model.parameters(), strict=True):
        assert torch.equal(mine, before)
    h, f = trainer.objective.thresholds
    assert h > 0
    assert f > 0
    trainer, _ = spied("CAPO", model, tokenizer, tmp_path, **(settings | {"max_steps": 4}))
    trainer.train()
    pairs = zip(weights(trainer), model.parameters(), strict=True)
    assert any(not torch.equal(mine, before) for mine, before in pairs)


@pytest.mark.parametrize("step", [2, 4], ids=["while_calibrating", "calibrated"])
def test_capo_resumes_bit_equal(step, whole_run, tokenizer, tmp_path):
    model, folder, whole = whole_run
    trainer, _ = spied("CAPO", model, tokenizer, tmp_path, **RESUMED)
    trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{step}"))
    for mine, its in zip(weights(trainer), weights(whole), strict=True):
        assert torch.equal(mine, its)
    mine, its = (run.objective.moments.state_dict() for run in (trainer, whole))
    assert mine["step"] == its["step"] == STEPS
    for name in ("ids", "first", "second"):
        assert torch.equal(mine[name], its[name]), name
    assert trainer.objective.thresholds == whole.objective.thresholds


def test_without_the_moments_the_run_would_differ(whole_run, tokenizer, tmp_path):
    """The test above can fail."""
    model, folder, whole = whole_run
    trainer, _ = spied("CAPO", model, tokenizer, tmp_path, **RESUMED)
    trainer.objective.moments.load_state_dict = lambda state: None
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-4"))
    pairs = zip(weights(trainer), weights(whole), strict=True)
    assert any(not torch.equal(mine, its) for mine, its in pairs)


def test_copo_learns_from_groups_with_equal_rewards(tiny_model, tokenizer, tmp_path):
    found = {}
    for name in ("COPO", "GRPO"):
        trainer, seen = spied(name, tiny_model, tokenizer, tmp_path, same_for_a_prompt, max_steps=1)
        trainer.train()
        found[name] = (next(log for log in trainer.state.log_history if "loss" in log), seen[0][1])
    log, batch = found["COPO"]
    between = batch.streams["global_advantages"]
    assert (batch.advantages == 0).all()
    assert between.abs().min() > 0  # three prompts, not all alike
    weight = batch.streams["local_weight"]
    by_hand = (-(1 - weight) * between).mean()  # equal weight for every response, ratio 1
    assert log["policy_loss"] == pytest.approx(by_hand.item(), abs=1e-6)
    assert log["signal/carried"] == 1.0
    assert log["copo/global_loss_share"] == pytest.approx(1.0)
    assert found["GRPO"][0]["signal/equal_rewards"] == 1.0


def test_clip_ratios_go_by_the_advantage_the_loss_has():
    """The group says down, the batch says up, and the batch has all the weight: what is clipped lies above."""
    one, nothing = torch.ones(1, 1), torch.zeros(1, 1)
    batch = TokenBatch(
        torch.tensor([[0.5, 1.5, 1.1, 1.0]]).log(),
        torch.zeros(1, 4),
        torch.ones(1, 4),
        -one,
        streams={"global_advantages": one, "local_weight": nothing, "global_weight": one},
    )
    metrics = LossMetrics(Accelerator(cpu=True))
    signal = account_objective(COPO(), batch, generated=batch.mask)
    shared = {
        "keep": None,
        "kl": None,
        "entropies": batch.mask,
        "share": nothing.sum(),
        "first": True,
        "signal": signal,
    }
    metrics.add(COPO(), "copo", batch, **shared)
    found = metrics.flush()
    assert found["clip_ratio/high_mean"] == found["signal/clipped_high"] == 0.25
    assert found["clip_ratio/low_mean"] == 0.0


def test_capo_on_copo_plans_with_the_blended_advantage(tiny_model, tokenizer, tmp_path):
    trainer, seen = spied(
        "CAPO",
        tiny_model,
        tokenizer,
        tmp_path,
        judged_with_answers,
        base="copo",
        base_settings={"gamma": 20.0, "rho": 1.5},
        optimizer_model="sgd",
        max_steps=1,
    )
    trainer.train()
    _, batch = seen[0]
    weight = batch.streams["local_weight"]
    blended = weight * batch.advantages + (1 - weight) * batch.streams["global_advantages"]
    assert_close(trainer.objective.effective_advantages(batch), blended)
    assert not torch.allclose(blended, batch.advantages)


def test_copo_without_answers_stops_at_the_first_rollout(tiny_model, tokenizer, tmp_path):
    trainer, _ = spied("COPO", tiny_model, tokenizer, tmp_path, judged, max_steps=1)
    with pytest.raises(ValueError, match="no reward function gives final answers"):
        trainer.train()


REFUSED = """
method: {method}
model: {{scratch: {{hidden_size: 32, layers: 2, heads: 2, max_positions: 64}}}}
data: {{name: sort}}
rewards: [{{name: "{reward}"}}]
objective: {objective}
rollout: {{group_size: 4, max_new_tokens: 6}}
train: {{max_steps: 2, per_device_train_batch_size: 8, learning_rate: 1.0e-3, use_cpu: true}}
"""


@pytest.mark.parametrize(("method", "objective"), [("copo", "{}"), ("capo", "{base: copo}")])
def test_plan_refuses_copo_without_answers(method, objective, tmp_path):
    (tmp_path / "mine.py").write_text("def score(completions, **_):\n    return [0.0] * len(completions)\n")
    recipe = tmp_path / "r.yaml"
    for reward, refused in ((f"{tmp_path / 'mine.py'}:score", True), ("exact_match", False)):
        recipe.write_text(REFUSED.format(method=method, objective=objective, reward=reward))
        refusals = make_plan(load_recipe(recipe)).refusals
        assert any("final answers" in refusal for refusal in refusals) == refused


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"optimizer_model": "Adam"}, "CAPO: optimizer_model: Input should be 'adam' or 'sgd'"),
        (
            {"objective_threshold": -0.01},
            "CAPO: objective_threshold: Input should be greater than or equal to 0",
        ),
        ({"base": "gspo"}, "CAPO: base: 'gspo' is none of grpo, "),
        ({"moment_decay": (0.9,)}, "CAPO: moment_decay"),
    ],
)
def test_a_config_holds_what_a_recipe_could(settings, words, tiny_model, tokenizer, tmp_path):
    with pytest.raises(ValueError, match=words):
        spied("CAPO", tiny_model, tokenizer, tmp_path, **settings)
