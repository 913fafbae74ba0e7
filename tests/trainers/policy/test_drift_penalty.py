"""drift_penalty: minus what eval drift measures of an answer, against a float64 computation apart, and in a trainer."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.utils import DistributedType
from datasets import Dataset
from small_recipe import POLICY, Load, merged
from tiny_run import arguments

from posttrain.planning.rewards import reward_faults, reward_lines, reward_model_faults
from posttrain.rewards.drift_reward import DriftReward, drift_penalty
from posttrain.rewards.resolve import RewardSpec
from posttrain.rewards.runner import RewardError
from posttrain.rewards.signature import RewardSpecError
from posttrain.rollout.answer_divergence import with_goal
from posttrain.trainers import GRPOConfig, GRPOTrainer
from posttrain.trainers.models.drift_scorer import DriftScorer
from posttrain.trainers.models.load import character_tokenizer, scratch_llama
from posttrain.trainers.policy.judging import require_whole_policy


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Another model than the policy of the tests, as a folder."""
    folder, tokenizer = tmp_path_factory.mktemp("reference"), character_tokenizer()
    model = scratch_llama(tokenizer, hidden_size=32, layers=1, heads=2, max_positions=64, seed=5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def divergence(policy: Any, other: Any, tokenizer: Any, prompt: str, told: str, answer: list[int]) -> float:
    """D by its formula, one next-token distribution at a time, in float64."""

    def logprobs(model: Any, before: list[int]) -> torch.Tensor:
        wide = copy.deepcopy(model).double().eval()
        return wide(input_ids=torch.tensor([before])).logits[0, -1, : len(tokenizer)].log_softmax(-1)

    total = 0.0
    with torch.no_grad():
        for j in range(len(answer)):
            q = logprobs(policy, [*tokenizer(prompt)["input_ids"], *answer[:j]])
            p = logprobs(other, [*tokenizer(told)["input_ids"], *answer[:j]])
            total += float((q.exp() * (q - p)).sum())
    return total / len(answer)


def test_it_is_minus_the_formula_of_each_answer(tiny_model: Any, tokenizer: Any, reference: str) -> None:
    scorer = DriftScorer(DriftReward(reference, "vocabulary"), tokenizer, "cpu")
    answers = [tokenizer("123")["input_ids"], [*tokenizer("7")["input_ids"], tokenizer.eos_token_id], []]
    tiny_model.train()
    found = scorer.score(tiny_model, ["1+1=", "2+2=", "3+3="], answers, ["9=9", "0", "5"])
    assert tiny_model.training
    expected = [
        divergence(tiny_model, scorer.reference, tokenizer, prompt, f"{goal}\n\n{prompt}", answer)
        for prompt, goal, answer in (("1+1=", "9=9", answers[0]), ("2+2=", "0", answers[1]))
    ]
    assert found == pytest.approx([-expected[0], -expected[1], 0.0], abs=1e-6)
    assert min(expected) > 1e-5
    assert scorer.kl == pytest.approx(sum(expected), abs=1e-6)
    assert 0 < scorer.js < 1.4
    sampled = DriftScorer(DriftReward(reference), tokenizer, "cpu")
    told = tokenizer("0\n\n2+2=")["input_ids"]
    with torch.no_grad():
        q = tiny_model.eval()(
            input_ids=torch.tensor([[*tokenizer("2+2=")["input_ids"], *answers[1]]])
        ).logits[0]
        p = scorer.reference(input_ids=torch.tensor([[*told, *answers[1]]])).logits[0]
    ratios = [
        (q[-3 + j].log_softmax(-1)[token] - p[-3 + j].log_softmax(-1)[token]).item()
        for j, token in enumerate(answers[1])
    ]
    (value,) = sampled.score(tiny_model, ["2+2="], [answers[1]], ["0"])
    assert value == pytest.approx(-sum(ratios) / 2, abs=1e-6)


def test_which_gradient_a_policy_gradient_follows() -> None:
    """Two tokens of three each, all answers in the sum: one mean of both measures, and only with the log-ratio of the
    sampled tokens is the mean's gradient that of rewards taken for constants."""
    torch.manual_seed(0)
    theta = torch.randn(
        4, 3, dtype=torch.float64, requires_grad=True
    )  # the first token, and the second after each
    p = torch.randn(4, 3, dtype=torch.float64).log_softmax(-1)
    q = theta.log_softmax(-1)
    kl = (q.exp() * (q - p)).sum(-1)
    nothing = torch.zeros((), dtype=torch.float64)
    mean, surrogate = ({"sampled": nothing, "vocabulary": nothing} for _ in range(2))
    for first in range(3):
        for second in range(3):
            log_prob = q[0, first] + q[1 + first, second]
            values = {
                "sampled": -(log_prob - p[0, first] - p[1 + first, second]) / 2,
                "vocabulary": -(kl[0] + kl[1 + first]) / 2,
            }
            for name, value in values.items():
                mean[name] = mean[name] + log_prob.exp() * value
                surrogate[name] = surrogate[name] + log_prob.exp() * value.detach()
    assert mean["sampled"].item() == pytest.approx(mean["vocabulary"].item(), abs=1e-12)
    (whole,) = torch.autograd.grad(mean["vocabulary"], theta, retain_graph=True)
    (followed,) = torch.autograd.grad(surrogate["sampled"], theta, retain_graph=True)
    (part,) = torch.autograd.grad(surrogate["vocabulary"], theta)
    torch.testing.assert_close(followed, whole)
    assert float(part[1:].abs().max()) < 1e-12  # nothing is said of the last token
    assert float(whole[1:].abs().max()) > 1e-2


def test_the_goal_stands_where_eval_drift_puts_it() -> None:
    talk = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    assert with_goal(talk, "G") == [*talk[:2], {"role": "user", "content": "c\n\nG"}]
    assert talk[2]["content"] == "c"
    assert with_goal("c>", "G") == "G\n\nc>"


def test_a_trainer_scores_it_with_the_policy_of_the_moment(
    tiny_model: Any, tokenizer: Any, reference: str, tmp_path: Path
) -> None:
    rows = Dataset.from_list([{"prompt": f"{i}+{i}=", "goal": f"{i}=9"} for i in range(6)])
    args = {"reference": reference, "measure": "vocabulary"}
    spec = RewardSpec("drift_penalty", args, weight=2.0, label="drift")
    made = GRPOTrainer(
        copy.deepcopy(tiny_model), [spec],
        GRPOConfig(**arguments(tmp_path, max_steps=2, learning_rate=0.1, optim="sgd")),
        rows, processing_class=tokenizer,
    )  # fmt: skip
    then: list[Any] = []
    scorer = made.judge.drifts[0]
    score = scorer.score

    def keep(policy: Any, *given: Any) -> list[float]:
        then.append(copy.deepcopy(tiny_model))
        then[-1].load_state_dict(policy.state_dict())
        return score(policy, *given)

    scorer.score = keep  # type: ignore[method-assign]  # watched
    made.train()
    rollout = made.judge.last()
    assert len(then) == 2
    first, second = (torch.cat([p.detach().flatten() for p in one.parameters()]) for one in then)
    assert float((first - second).abs().max()) > 1e-4
    for i in (0, 7):
        prompt = str(rollout.prompts[i])
        told = f"{prompt[0]}=9\n\n{prompt}"
        expected = divergence(then[1], scorer.reference, tokenizer, prompt, told, rollout.completion_ids[i])
        assert float(rollout.rewards_per_function[i, 0]) == pytest.approx(-expected, abs=1e-5)
    logged = [row for row in made.state.log_history if "rewards/drift/mean" in row]
    assert logged[-1]["reward"] == pytest.approx(2.0 * logged[-1]["rewards/drift/mean"])
    assert logged[-1]["drift/drift/kl"] == pytest.approx(-logged[-1]["rewards/drift/mean"], rel=1e-3)
    assert logged[-1]["drift/drift/js"] > 0


def test_what_cannot_be_scored_is_said(tiny_model: Any, tokenizer: Any, reference: str) -> None:
    scorer = DriftScorer(DriftReward(reference), tokenizer, "cpu")
    with pytest.raises(RewardError, match="response 1 has no goal in its column 'goal'"):
        scorer.score(tiny_model, ["1=", "2="], [[3], [4]], ["9", None])
    other = copy.deepcopy(tokenizer)
    other.add_tokens(["<more>"])
    with pytest.raises(RewardError, match="is not the policy's"):
        DriftScorer(DriftReward(reference), other, "cpu")
    with pytest.raises(RewardSpecError, match=r"needs args\.reference"):
        DriftReward.of(RewardSpec("drift_penalty"))
    with pytest.raises(RuntimeError, match="the trainer scores it"):
        drift_penalty(["a"], goal=["g"], reference=reference)
    for kind, stage, refused in (
        (DistributedType.FSDP, None, True),
        (DistributedType.DEEPSPEED, 3, True),
        (DistributedType.DEEPSPEED, 2, False),
        (DistributedType.MULTI_GPU, None, False),
    ):
        plugin = None if stage is None else SimpleNamespace(zero_stage=stage)
        machine = SimpleNamespace(distributed_type=kind, state=SimpleNamespace(deepspeed_plugin=plugin))
        if refused:
            with pytest.raises(RewardError, match="DDP or ZeRO-2"):
                require_whole_policy("drift", machine)
        else:
            require_whole_policy("drift", machine)


def test_a_recipe_names_it_and_its_faults_are_said(load: Load, reference: str) -> None:
    recipe = load(merged(POLICY, {}), rewards=[{"name": "drift_penalty", "args": {"reference": reference}}])
    assert reward_faults(recipe, ["prompt", "goal"]) == []
    assert "needs 'goal'" in reward_faults(recipe, ["prompt"])[0]
    assert reward_model_faults(recipe) == []
    assert "scored by the trainer with the reference" in reward_lines(recipe)[0]
    absent = load(
        merged(POLICY, {}), rewards=[{"name": "drift_penalty", "args": {"reference": "runs/absent/model"}}]
    )
    assert any("no folder 'runs/absent/model'" in one for one in reward_model_faults(absent))
