"""Logged answers in the groups of whole short runs: where they stand, what is made of them, what they are never taken
for."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from places import SUPPORT
from rollout_fakes import CopyEngine, logprobs_of, small_model

from posttrain.data import DataError
from posttrain.objectives.base import Objective
from posttrain.objectives.dapo import DAPO
from posttrain.objectives.grpo import GRPO
from posttrain.objectives.ppo import PPO
from posttrain.objectives.reinforce_pp import REINFORCEPlusPlus
from posttrain.observe.reasons import CLASSES
from posttrain.observe.recorder import load_record
from posttrain.rollout.logged import LoggedRule
from posttrain.rollout.resample import ResampleRule
from posttrain.rollout.transformers_engine import TransformersEngine
from posttrain.trainers.engines.logged_answers import answers_of
from posttrain.trainers.engines.rollout_plan import RolloutPlan
from posttrain.trainers.models.load import character_tokenizer
from posttrain.trainers.policy.reward_kl import with_token_kl
from posttrain.trainers.policy.trainer import PolicyTrainer
from posttrain.trainers.reporting.rollout_columns import last_rollout
from posttrain.trainers.seam.config import PolicyConfig

JUDGED = f"{SUPPORT / 'letter_rewards.py'}:judged"
CHARACTERS = character_tokenizer()
END = CHARACTERS.eos_token_id
TEACHER = [["ab"], ["abc", "d"], None, ["much too long"]] * 6
"""One answer, two, none, and one that does not fit into eight tokens."""


class Noting(PolicyTrainer):
    """Keeps what each rollout holds."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self.tokens: list[list[list[int]]] = []
        self.given: list[list[bool] | None] = []
        self.outputs: list[dict[str, Any]] = []
        super().__init__(*arguments, **named)

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        if self.model.training:
            rollout = self.judge.last()
            self.tokens.append(rollout.completion_ids)
            self.given.append(rollout.given)
            self.outputs.append(output)
        return output

    def column(self, name: str) -> list[float]:
        return [float(one[name]) for one in self.state.log_history if name in one]


def trainer_in(
    folder: Path, rows: list[dict[str, Any]], objective: Objective | None = None, **changes: Any
) -> Noting:
    arguments = {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "per_device_train_batch_size": 16,
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
        JUDGED,
        PolicyConfig(**arguments),
        Dataset.from_list(rows),
        processing_class=CHARACTERS,
        objective=GRPO() if objective is None else objective,
    )


def with_teacher(**more: list[Any]) -> list[dict[str, Any]]:
    columns = {"teacher": TEACHER, **more}
    return [
        {"prompt": f"{i}+{i % 7}=", **{name: values[i] for name, values in columns.items()}}
        for i in range(len(TEACHER))
    ]


def run(
    folder: Path,
    rule: LoggedRule | None,
    rows: list[dict[str, Any]] | None = None,
    engine: Any = None,
    resume: str | None = None,
    plan: dict[str, Any] | None = None,
    **changes: Any,
) -> Noting:
    trainer = trainer_in(folder, with_teacher() if rows is None else rows, **changes)
    made = engine(trainer.model) if engine else TransformersEngine.of(trainer.model, pad_token_id=0)
    trainer.use_engine(made, RolloutPlan(logged=rule, **(plan or {})))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def equal(a: Noting, b: Noting) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.model.parameters(), b.model.parameters(), strict=True))


def ids(text: str) -> list[int]:
    return [*CHARACTERS(text)["input_ids"], END]


@pytest.fixture(scope="module")
def untreated(tmp_path_factory: pytest.TempPathFactory) -> Noting:
    """Half of the places, two rollouts of four prompts, the KL penalty on."""
    folder = tmp_path_factory.mktemp("untreated")
    return run(folder, LoggedRule("teacher", share=0.5), beta=0.1, record_steps=[1])


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Noting:
    return run(tmp_path_factory.mktemp("plain"), None, beta=0.1, max_steps=1)


def test_they_take_the_last_places_as_far_as_they_go_and_samples_are_what_they_were(
    untreated: Noting, plain: Noting
) -> None:
    tokens, given = untreated.tokens[0], untreated.given[0]
    assert given == [*[False] * 3, True, *[False] * 2, True, True, *[False] * 8]
    assert (tokens[3], tokens[6], tokens[7]) == (ids("ab"), ids("d"), ids("abc"))
    for place, logged in enumerate(given):
        assert logged or tokens[place] == plain.tokens[0][place]
    assert plain.given[0] is None
    assert "logged" not in plain.outputs[0]


def test_the_account_is_apart_and_what_is_said_of_samples_is_of_samples(untreated: Noting) -> None:
    tokens, given = untreated.tokens[0], untreated.given[0] or []
    sampled = [one for one, logged in zip(tokens, given, strict=True) if not logged]
    rewards = [float(len(set(CHARACTERS.decode(one, skip_special_tokens=True))) % 3) for one in tokens]
    of_samples = [reward for reward, logged in zip(rewards, given, strict=True) if not logged]
    assert untreated.column("reward")[0] == pytest.approx(sum(of_samples) / 13)
    assert untreated.column("rewards/judged/mean")[0] == pytest.approx(sum(of_samples) / 13)
    assert untreated.column("logged/reward")[0] == pytest.approx((2 + 1 + 0) / 3)
    assert untreated.column("completions/mean_length")[0] == pytest.approx(sum(map(len, sampled)) / 13)
    assert untreated.column("completions/min_length")[0] == min(map(len, sampled))
    assert untreated.column("completions/clipped_ratio")[0] == pytest.approx(
        sum(one[-1] != END for one in sampled) / 13
    )
    prompts = sum(len(f"{i // 4}+{i // 4 % 7}=") for i, logged in enumerate(given) if not logged)
    assert untreated.column("num_tokens")[0] == prompts + sum(map(len, sampled))
    assert untreated.column("signal/tokens")[0] == sum(map(len, sampled))
    assert untreated.column("logged/tokens")[0] == 3 + 2 + 4
    assert untreated.column("logged/mean_length")[0] == 3
    assert untreated.column("logged/response_share")[0] == 3 / 16
    assert untreated.column("logged/filled")[0] == 3 / 8
    loss_tokens = sum(map(len, tokens))
    assert untreated.column("logged/token_share")[0] == pytest.approx(9 / loss_tokens)
    shares = [
        untreated.column(f"logged/{name}")[0]
        for name in CLASSES
        if f"logged/{name}" in untreated.state.log_history[0]
    ]
    assert sum(shares) == pytest.approx(1)


def test_untreated_ratios_stay_at_one_where_the_policy_has_moved(tmp_path: Path) -> None:
    trainer = run(
        tmp_path, LoggedRule("teacher", share=0.5), max_steps=4, num_iterations=2, learning_rate=0.05
    )
    assert trainer.column("logged/ratio") == [1, 1, 1, 1]
    assert trainer.column("logged/clipped_high") == trainer.column("logged/clipped_low") == [0, 0, 0, 0]
    moved = [trainer.column(name)[1] for name in ("signal/clipped_high", "signal/clipped_low")]
    assert max(moved) > 0


def test_the_kl_penalty_and_its_estimate_are_of_samples(untreated: Noting) -> None:
    """The second step: its reference is the start, so that samples have a KL; the estimate is over their tokens."""
    trainer, output = untreated, untreated.outputs[1]
    policy = REINFORCEPlusPlus()
    assert policy.kl_in_reward
    assert trainer.column("kl")[1] > 0
    groups = trainer.judge.groups(4)
    kl = with_token_kl(trainer, groups, output).token_kl
    assert kl is not None
    assert groups.logged is not None
    assert (kl[groups.logged] == 0).all()
    assert (kl[~groups.logged] != 0).any()


def test_they_are_marked_in_what_the_run_folder_keeps(untreated: Noting) -> None:
    columns = last_rollout(untreated)
    assert columns is not None
    assert columns["logged"] == untreated.given[-1]
    assert [version is None for version in columns["weight_version"]] == untreated.given[-1]


def test_the_record_of_a_step_says_which_rows_they_are(untreated: Noting) -> None:
    record = load_record(Path(untreated.args.output_dir).parent / "records")
    assert record.groups is not None
    assert record.groups.logged is not None
    assert record.groups.logged.flatten().tolist() == untreated.given[0]
    (batch,) = record.batches
    assert batch.logged is not None
    assert record.rows is not None
    assert torch.equal(batch.logged.squeeze(1), record.groups.logged.flatten()[record.rows[0]])


def test_shaped_with_a_share_of_none_is_the_plain_run_and_its_loss_is_by_hand(
    tmp_path: Path, plain: Noting
) -> None:
    """One step of GRPO over the buffer, every response weighing the same: the loss is that of samples at ratio one,
    which is minus their mean advantage, and of the logged -A p / (p + gamma)."""
    start = small_model(scale=6.0)
    trainer = run(tmp_path, LoggedRule("teacher", share=0.5, treatment="shaped", gamma=0.2), max_steps=1)
    output, given = trainer.outputs[0], torch.tensor(trainer.given[0])
    advantages = output["advantages"].flatten()
    expected = []
    for row in range(16):
        if not given[row]:
            expected.append(-float(advantages[row]))
            continue
        prompt = output["prompt_ids"][row][output["prompt_mask"][row].bool()].tolist()
        p = logprobs_of(start, prompt, trainer.tokens[0][row]).exp()
        expected.append(-float(advantages[row]) * float((p / (p + 0.2)).mean()))
    assert trainer.column("policy_loss")[0] == pytest.approx(sum(expected) / 16, abs=1e-5)
    assert "logged/ratio" not in trainer.state.log_history[0]


def test_behaviour_takes_the_ratio_to_the_log_probs_that_are_stored(tmp_path: Path) -> None:
    """The logged answer has log-probs of half the policy's probability: its ratio is 2, and its gradient clipped."""
    start, rows = small_model(scale=6.0), [{"prompt": "1+1=", "teacher": "ab"}]
    prompt = CHARACTERS("1+1=")["input_ids"]
    stored = (logprobs_of(start, prompt, ids("ab")) - math.log(2)).tolist()
    rows = [{**rows[0], "stored": stored}] * 4
    rule = LoggedRule("teacher", treatment="behaviour", logprobs_column="stored")
    trainer = run(tmp_path, rule, rows, max_steps=1)
    assert trainer.column("logged/ratio")[0] == pytest.approx(2, rel=1e-4)
    advantage = trainer.outputs[0]["advantages"].flatten()[torch.tensor(trainer.given[0])]
    up = float((advantage > 0).float().mean())
    assert trainer.column("logged/clipped_high")[0] == pytest.approx(up)
    with pytest.raises(DataError, match="has 2 log-probs for an answer of 3 tokens, its end token included"):
        run(tmp_path, rule, [{**rows[0], "stored": stored[:2]}] * 4)
    with pytest.raises(DataError, match="holds what is no log-prob"):
        run(tmp_path, rule, [{**rows[0], "stored": [*stored[:2], math.nan]}] * 4)
    with pytest.raises(DataError, match="log-probs for 0 answers, and column 'teacher' has 1"):
        run(tmp_path, rule, [{**rows[0], "stored": None}] * 3 + [rows[0]])


@pytest.mark.parametrize("treatment", ["none", "behaviour", "shaped"])
@pytest.mark.parametrize("staleness", [0, 1])
def test_a_resumed_run_is_the_uninterrupted_one(treatment: Any, staleness: int, tmp_path: Path) -> None:
    """Two micro-batches a rollout, used twice: step 3 lies within a window."""
    lengths = [None if cell is None else [[-1.0] * (len(one) + 1) for one in cell] for cell in TEACHER]
    rule = LoggedRule(
        "teacher", 0.5, treatment, logprobs_column="stored" if treatment == "behaviour" else None
    )
    settings: dict[str, Any] = {
        "rows": with_teacher(stored=lengths),
        "engine": CopyEngine if staleness else None,
        "plan": {"staleness": staleness},
        "per_device_train_batch_size": 4,
        "steps_per_generation": 2,
        "num_iterations": 1 if staleness else 2,
        "max_steps": 5,
        "beta": 0.1,
    }
    whole = run(tmp_path, rule, save_strategy="steps", save_steps=3, **settings)
    resumed = run(tmp_path / "again", rule, resume=str(tmp_path / "checkpoint-3"), **settings)
    assert equal(whole, resumed)
    assert resumed.tokens == whole.tokens[len(whole.tokens) - len(resumed.tokens) :]
    assert any(any(given or []) for given in whole.given)
    for name in ("loss", "logged/tokens", "num_tokens", "rollout/staleness_max"):
        later = [one[name] for one in whole.state.log_history if name in one and one["step"] > 3]
        assert [one[name] for one in resumed.state.log_history if name in one and one["step"] > 3] == later, (
            name
        )


def test_a_correction_for_the_sampler_leaves_them_alone(tmp_path: Path) -> None:
    """The engine's weights are others than the trainer's: samples are weighed, logged answers have weight 1."""
    plan = {"importance_correction": "token_truncate", "proof_limit": 1e9}
    trainer = run(
        tmp_path, LoggedRule("teacher", share=0.5), plan=plan, max_steps=1, temperature=0.7, top_k=5
    )
    weights, given = trainer.outputs[0]["importance_sampling_ratio"], torch.tensor(trainer.given[0])
    assert (weights[given] == 1).all()
    assert (weights[~given] != 1).any()


def test_dynamic_sampling_counts_what_was_sampled(tmp_path: Path) -> None:
    rule = LoggedRule("teacher", share=0.5)
    plan = {"resample": ResampleRule(max_rounds=3)}
    trainer = run(tmp_path, rule, plan=plan, objective=DAPO(), max_steps=1, per_device_train_batch_size=8)
    tokens, given = trainer.tokens[0], trainer.given[0] or []
    assert any(given)
    kept = sum(len(one) for one, logged in zip(tokens, given, strict=True) if not logged)
    thrown = trainer.column("resample/tokens")[0] - kept
    assert trainer.column("resample/taught_tokens")[0] <= kept
    assert trainer.column("signal/tokens")[0] == kept + thrown
    assert trainer.column("logged/tokens")[0] == sum(map(len, tokens)) - kept


def test_held_out_prompts_are_sampled_whole(tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path, with_teacher(), eval_strategy="no", per_device_eval_batch_size=4)
    trainer.eval_dataset = Dataset.from_list(with_teacher()[:4])
    trainer.use_engine(
        TransformersEngine.of(trainer.model, pad_token_id=0), RolloutPlan(logged=LoggedRule("teacher"))
    )
    found = trainer.evaluate()
    assert trainer.held_out[0].given is None
    assert not [name for name in found if "logged" in name]


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    def refused(rule: LoggedRule, rows: Any = None, plan: Any = None, **changes: Any) -> str:
        with pytest.raises(ValueError, match="logged|column") as caught:
            run(tmp_path, rule, rows, plan=plan, **changes)
        return str(caught.value)

    rule = LoggedRule("teacher")
    assert "PPO: its critic learns what the policy earns" in refused(rule, objective=PPO())
    assert "logged does not go with partial_budget" in refused(rule, plan={"partial_budget": 4})
    assert "leaves no place for a logged answer" in refused(LoggedRule("teacher", share=0.1))
    assert "needs logprobs_column" in refused(LoggedRule("teacher", treatment="behaviour"))
    assert "set remove_unused_columns to False" in refused(rule, remove_unused_columns=True)
    assert "none of 24 rows has an answer in column 'gold'" in refused(LoggedRule("gold"))
    long = [{"prompt": f"{i}=", "teacher": "longer than eight"} for i in range(8)]
    assert "8 are longer than max_new_tokens 8 and left out" in refused(rule, long)
    numbers = [{"prompt": f"{i}=", "teacher": 3.5} for i in range(8)]
    assert "holds a float, and an answer is text" in refused(rule, numbers)


def test_cells_that_hold_answers() -> None:
    turn = {"role": "assistant", "content": "yes", "tool_calls": None}
    assert answers_of(None, "c") == answers_of("", "c") == answers_of([], "c") == []
    assert answers_of("a", "c") == answers_of(["a"], "c") == ["a"]
    assert answers_of([turn], "c") == answers_of([[turn]], "c") == [{"role": "assistant", "content": "yes"}]
    with pytest.raises(DataError, match="which is no answer"):
        answers_of([{"role": "user", "content": "yes"}], "c")


CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}~{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_a_conversation_s_answer_ends_as_the_template_ends_it(tmp_path: Path) -> None:
    """What the template writes behind the end token no policy samples, so it is left off."""
    tokenizer = character_tokenizer()
    tokenizer.chat_template = CHAT
    trainer = trainer_in(tmp_path, with_teacher())
    trainer._tokenizer = trainer.processing_class = tokenizer
    rule = LoggedRule("teacher")
    trainer.use_engine(TransformersEngine.of(trainer.model, pad_token_id=0), RolloutPlan(logged=rule))
    question = [{"role": "user", "content": "1+1="}]
    asked = tokenizer.apply_chat_template(question, add_generation_prompt=True)["input_ids"]
    logged = trainer.rollouts.logged
    assert logged is not None
    assert logged.ids_of(question, "ab", asked) == ids("ab")
    assert logged.ids_of(question, {"role": "assistant", "content": "ab"}, asked) == ids("ab")
    with pytest.raises(DataError, match="the chat template renders the prompt otherwise"):
        logged.ids_of(question, "ab", asked[1:])
    with pytest.raises(DataError, match="holds messages but the prompt is text"):
        logged.ids_of("1+1=", {"role": "assistant", "content": "ab"}, asked)


# Two ranks


def split(processes: int, batch: int, out: Path) -> dict[str, Any]:
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [*launcher, str(SUPPORT / "logged_run.py"), str(batch), str(out)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(out, weights_only=True)


@pytest.mark.distributed
def test_two_ranks_train_as_one_does(tmp_path: Path) -> None:
    """A group of four on two ranks, half of its places logged: the second rank has nothing to sample."""
    one, two = split(1, 4, tmp_path / "one.pt"), split(2, 2, tmp_path / "two.pt")
    assert one["given"] == two["given"] == [False, False, True, True]
    assert one["tokens"] == two["tokens"]
    for name, values in one["metrics"].items():
        assert two["metrics"][name] == pytest.approx(values, rel=1e-4, abs=1e-6), name
    for a, b in zip(two["weights"], one["weights"], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
