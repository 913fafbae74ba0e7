"""A family over the KL coefficient in short runs: its rows, the reference without the prefix, the account, a resume."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, IterableDataset
from places import SUPPORT
from rollout_fakes import logprobs_of, small_model

from posttrain.objectives.grpo import GRPO
from posttrain.ops.balance_model import BalanceModel
from posttrain.rollout.transformers_engine import TransformersEngine
from posttrain.settings.beta_family import BetaFamily
from posttrain.trainers.engines.rollout_plan import RolloutPlan
from posttrain.trainers.models.load import character_tokenizer
from posttrain.trainers.policy.family_rollout import family_rows, prefix_fault
from posttrain.trainers.policy.trainer import PolicyTrainer
from posttrain.trainers.seam.config import PolicyConfig

VALUES = [0.0, 0.1, 0.5]
REWARD = f"{SUPPORT / 'letter_rewards.py'}:same_for_a_prompt"  # reads the number a prompt begins with
JUDGED = f"{SUPPORT / 'letter_rewards.py'}:judged"


class Noting(PolicyTrainer):
    def __init__(self, *arguments: Any, **named: Any) -> None:
        self.outputs: list[dict[str, Any]] = []
        super().__init__(*arguments, **named)

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        self.outputs.append(dict(output))
        return output

    def logged(self, name: str) -> list[float]:
        return [float(one[name]) for one in self.state.log_history if name in one]


def run(folder: Path, resume: str | None = None, reward: str = JUDGED, **changes: Any) -> Noting:
    arguments = {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "per_device_train_batch_size": 24,
        "num_generations": 4,
        "max_completion_length": 6,
        "learning_rate": 0.05,
        "optim": "sgd",
        "max_steps": 2,
        "seed": 3,
        **changes,
    }
    rows = Dataset.from_list([{"prompt": f"{i}+{i % 7}="} for i in range(24)])
    trainer = Noting(
        small_model(scale=6.0).train(),
        reward,
        PolicyConfig(**arguments),
        rows,
        processing_class=character_tokenizer(),
        objective=GRPO(),
    )
    trainer.use_engine(TransformersEngine.of(trainer.model, pad_token_id=0), RolloutPlan())
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Noting:
    return run(tmp_path_factory.mktemp("family"), reward=REWARD, beta_family=VALUES, max_steps=1)


def test_rows_are_there_once_for_each_value_and_held_out_ones_in_turn() -> None:
    family = BetaFamily.of(VALUES, ["x", "yy", "z"])
    rows = family_rows(
        Dataset.from_list([{"prompt": "1", "answer": "a"}, {"prompt": "2", "answer": "b"}]), family
    )
    assert [(one["prompt"], one["beta_value"]) for one in rows] == [
        ("x1", 0.0), ("yy1", 0.1), ("z1", 0.5), ("x2", 0.0), ("yy2", 0.1), ("z2", 0.5),
    ]  # fmt: skip
    assert list(rows["answer"]) == ["a"] * 3 + ["b"] * 3
    four = Dataset.from_list([{"prompt": str(i)} for i in range(4)])
    assert list(family_rows(four, family, in_turn=True)["prompt"]) == ["x0", "yy1", "z2", "x3"]


def test_a_prefix_goes_before_the_last_words_of_the_user_and_comes_off_again() -> None:
    family = BetaFamily.of([0.0, 0.25])
    talk = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "a"},
    ]
    told = family.prefixed(talk, 0.25)
    assert [one["content"] for one in told] == ["s", "[beta 0.25] u", "a"]
    assert family.plain(told, 0.25) == talk
    assert family.plain(family.prefixed("text", 0.0), 0.0) == "text"
    with pytest.raises(ValueError, match=r"no coefficient of this family; it has 0, 0\.25"):
        family.prefixed("text", 0.1)
    with pytest.raises(ValueError, match="no message of the user"):
        family.prefixed(talk[:1], 0.25)


def test_each_group_has_its_coefficient_and_the_reference_reads_no_prefix(trainer: Noting) -> None:
    """Against plain forwards: the reference's log-probs without the prefix, whatever the policy was asked."""
    output, reference = trainer.outputs[0], small_model(scale=6.0)
    tokenizer, seen = character_tokenizer(), []
    for row in range(24):
        asked = tokenizer.decode(output["prompt_ids"][row][output["prompt_mask"][row].bool()])
        value = float(output["beta_value"][row])
        prefix = f"[beta {value:g}] "
        assert asked.startswith(prefix)
        seen.append(asked)
        assert float(output["beta_factor"][row]) == pytest.approx(value / 0.5)
        answer = output["completion_ids"][row][output["completion_mask"][row].bool()].tolist()
        plain = tokenizer(asked.removeprefix(prefix))["input_ids"]
        found = output["ref_per_token_logps"][row][: len(answer)]
        torch.testing.assert_close(found, logprobs_of(reference, plain, answer), rtol=1e-4, atol=1e-4)
        with_prefix = logprobs_of(reference, tokenizer(asked)["input_ids"], answer)
        assert not torch.allclose(found, with_prefix, atol=1e-2)
    assert set(Counter(seen).values()) == {4}
    assert trainer.beta == trainer.args.beta == 0.5


def test_rewards_read_the_prompt_without_its_prefix(trainer: Noting) -> None:
    """The reward is a number of the prompt's first digits; it fails on a prefix."""
    rollout = trainer.judge.last()
    assert all(prompt[0].isdigit() for prompt in rollout.prompts)
    expected = [int(prompt.split("+")[0]) ** 2 / 576 for prompt in rollout.prompts]
    assert rollout.rewards_per_function[:, 0].tolist() == pytest.approx(expected)


def test_the_account_of_each_value_adds_up(trainer: Noting) -> None:
    rollout = trainer.judge.last()
    rewards, of = rollout.rewards_per_function[:, 0], torch.tensor(rollout.columns["beta_value"])
    shares, kl = 0.0, 0.0
    lengths = trainer.outputs[0]["completion_mask"].sum(1)
    for value in set(of.tolist()):
        name, mine = f"beta_family/{value:g}", of == value
        (share,), (reward,) = trainer.logged(f"{name}/share"), trainer.logged(f"{name}/reward")
        assert share == pytest.approx(float(mine.float().mean()))
        assert reward == pytest.approx(float(rewards[mine].mean()))
        shares += share
        kl += trainer.logged(f"{name}/kl")[0] * float(lengths[mine].sum() / lengths.sum())
    assert shares == pytest.approx(1.0)
    assert kl == pytest.approx(trainer.logged("kl")[0], rel=1e-5)
    assert trainer.logged("beta/mean")[0] == pytest.approx(float(of.mean()))


def test_the_family_is_saved_with_the_model(trainer: Noting, tmp_path: Path) -> None:
    trainer.model.save_pretrained(tmp_path)
    read = BetaFamily.of_config(json.loads((tmp_path / "config.json").read_text()))
    assert read == BetaFamily.of(VALUES)
    assert BetaFamily.of_config(small_model().config) is None


def test_the_penalty_of_each_response_is_its_coefficient_times_its_kl(tmp_path: Path) -> None:
    """What the loss gains over that of the same run with coefficients near zero."""
    prefixes = [f"[beta {value:g}] " for value in VALUES]
    family = run(tmp_path / "a", beta_family=VALUES, max_steps=1)
    none = run(tmp_path / "b", beta_family=[0.0, 1e-12, 2e-12], beta_prefixes=prefixes, max_steps=1)
    output = family.outputs[0]
    assert torch.equal(none.outputs[0]["completion_ids"], output["completion_ids"])
    penalties = [v * k for v, k in zip(output["beta_value"].tolist(), _kls(output), strict=True)]
    gained = family.logged("policy_loss")[0] - none.logged("policy_loss")[0]
    assert gained == pytest.approx(sum(penalties) / len(penalties), rel=1e-3)
    assert gained > 1e-3


def _kls(output: dict[str, Any]) -> list[float]:
    """Each response's mean k3 between its start and the reference: GRPO means over tokens, then over responses."""
    start, tokenizer = small_model(scale=6.0), character_tokenizer()
    found = []
    for row in range(len(output["completion_ids"])):
        prompt = output["prompt_ids"][row][output["prompt_mask"][row].bool()].tolist()
        answer = output["completion_ids"][row][output["completion_mask"][row].bool()].tolist()
        plain = tokenizer(tokenizer.decode(prompt).split("] ")[1])["input_ids"]
        gap = logprobs_of(start, plain, answer) - logprobs_of(start, prompt, answer)
        found.append(float((gap.exp() - gap - 1).mean()))
    return found


def test_a_resumed_run_in_mid_window_is_the_uninterrupted_one(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"beta_family": VALUES, "num_iterations": 2, "max_steps": 4}
    whole = run(tmp_path, save_strategy="steps", save_steps=3, **settings)
    resumed = run(tmp_path / "again", resume=str(tmp_path / "checkpoint-3"), **settings)
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_learned_balance_reads_its_features_from_the_rollout(tmp_path: Path) -> None:
    """Prompts of four characters get the small coefficient, those of five and more the large one."""
    two = torch.tensor([[4.0], [-4.0]], dtype=torch.float64).T
    model = BalanceModel(
        (0.1, 0.4),
        ("length",),
        torch.tensor([4.5]).double(),
        torch.ones(1).double(),
        -two,
        torch.zeros(2).double(),
    )
    file = tmp_path / "balance.json"
    file.write_text(json.dumps({"model": model.to_plain()}))
    trainer = run(
        tmp_path, beta=0.4, beta_by="learned", beta_model=str(file), beta_low=0.0, beta_high=1.0, max_steps=1
    )
    lengths = trainer.outputs[0]["prompt_mask"].sum(1)
    assert set(lengths.tolist()) == {4, 5}
    expected = torch.where(lengths > 4.5, 1.0, 0.25)
    torch.testing.assert_close(trainer.outputs[0]["beta_factor"], expected)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"beta_family": [0.1]}, "two coefficients or more"),
        ({"beta_family": [0.1, 0.1]}, "each once"),
        ({"beta_family": [-0.1, 0.1]}, "0 or more"),
        ({"beta_family": [0.0, 0.1], "beta": 0.2}, "leave it out"),
        ({"beta_family": [0.0, 0.1], "beta_by": "pass_rate", "beta_low": 0.5}, "leave one out"),
        ({"beta_family": [0.0, 0.1], "beta_prefixes": ["a"]}, "1 for 2 coefficients"),
        ({"beta_family": [0.0, 0.1], "beta_prefixes": ["a", "a"]}, "no two alike"),
        ({"beta_prefixes": ["a", "b"]}, "does nothing without beta_family"),
        ({"beta": 0.1, "beta_by": "learned", "beta_low": 0.0}, "name its file as beta_model"),
        ({"beta": 0.1, "beta_model": "x"}, "does nothing without beta_by"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        PolicyConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **changes)


def test_prefixes_that_the_tokenizer_cannot_tell_apart_are_refused() -> None:
    digits = character_tokenizer("0123456789")
    fault = prefix_fault(digits, BetaFamily.of([0.0, 0.1]))
    assert fault is not None
    assert "no tokens for '[beta 0] '" in fault
    assert prefix_fault(digits, BetaFamily.of([0.0, 0.1], ["1", "2"])) is None
    with pytest.raises(ValueError, match="give a Dataset"):
        family_rows(IterableDataset.from_generator(lambda: iter(())), BetaFamily.of([0.0, 0.1]))


# Two ranks


def split(processes: int, batch: int, out: Path, reference: str) -> dict[str, Any]:
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [*launcher, str(SUPPORT / "balance_run.py"), str(batch), str(out), reference]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(out, weights_only=True)


@pytest.mark.distributed
def test_two_ranks_train_as_one_does(tmp_path: Path) -> None:
    """Of a family, and with drift_penalty in the reward."""
    reference = tmp_path / "reference"
    small_model(seed=5).save_pretrained(reference)
    character_tokenizer().save_pretrained(reference)
    one = split(1, 12, tmp_path / "one.pt", str(reference))
    two = split(2, 6, tmp_path / "two.pt", str(reference))
    assert any(name.startswith("beta_family/0.5/") for name in one["family"]["metrics"])
    assert min(one["drift"]["metrics"]["drift/drift_penalty/kl"]) > 0
    for kind in ("family", "drift"):
        assert one[kind]["tokens"] == two[kind]["tokens"]
        for name, values in one[kind]["metrics"].items():
            assert two[kind]["metrics"][name] == pytest.approx(values, rel=1e-4, abs=1e-6), name
        for a, b in zip(two[kind]["weights"], one[kind]["weights"], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
