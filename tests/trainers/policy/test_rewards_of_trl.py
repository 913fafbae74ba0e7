"""Rewards as TRL's users write them, in our trainers: what they are given, where they run, and what comes back."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from datasets import Dataset
from tiny_run import arguments
from transformers import LlamaConfig, LlamaForSequenceClassification

from posttrain.rewards.resolve import RewardSpec
from posttrain.rewards.runner import RewardError
from posttrain.rewards.signature import RewardSpecError
from posttrain.trainers import BAPOConfig, BAPOTrainer

CHAT = (
    "{% for m in messages %}{{ m['content'] }}{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}={% endif %}"
)


def rows(chat: bool = False, **columns: Any) -> Dataset:
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": f"{i}"}] if chat else f"{i}=",
                **{key: value(i) for key, value in columns.items()},
            }
            for i in range(12)
        ]
    )


@pytest.fixture
def chat_tokenizer(tokenizer):
    import copy

    changed = copy.deepcopy(tokenizer)
    changed.chat_template = CHAT
    return changed


def train(model, tokenizer, tmp_path, rewards, data=None, *, trainer: dict[str, Any] | None = None, **extra):
    args = BAPOConfig(**arguments(tmp_path, **{"max_steps": 1, "reward_workers": 1, **extra}), target=0.4)
    made = BAPOTrainer(
        model, rewards, args=args, train_dataset=data if data is not None else rows(),
        processing_class=tokenizer, **(trainer or {}),
    )  # fmt: skip
    made.train()
    return made


# ---- TRL's arguments


def test_trl_s_keywords_arrive_and_what_is_logged_comes_back(tiny_model, tokenizer, tmp_path):
    def trl_style(prompts, completions, completion_ids, trainer_state, log_extra, log_metric, **kwargs):
        assert sorted(kwargs) == ["completion_tokens", "level"]
        log_extra("first_letter", [text[:1] for text in completions])
        log_metric("mean_tokens", sum(len(ids) for ids in completion_ids) / len(completion_ids))
        assert trainer_state.max_steps == 2
        assert isinstance(trainer_state.log_history, list)
        return [trainer_state.global_step + i / 8 for i, _ in enumerate(completions)]

    made = train(
        tiny_model,
        tokenizer,
        tmp_path,
        trl_style,
        rows(level=lambda i: i),
        max_steps=2,
        log_completions=False,
    )
    assert made.rollout.rewards_per_function[:, 0].tolist() == [1.0, 1.125, 1.25, 1.375] * 3
    assert made.rollout.extra["first_letter"] == [text[:1] for text in made.rollout.completions]
    assert list(made._logs["extra"]["first_letter"])[-12:] == made.rollout.extra["first_letter"]
    lengths = [len(ids) for ids in made.rollout.completion_ids]
    logged = [entry["mean_tokens"] for entry in made.state.log_history if "mean_tokens" in entry]
    assert logged[-1] == pytest.approx(sum(lengths) / len(lengths))


def test_everything_in_kwargs_as_trl_hands_it_over(tiny_model, tokenizer, tmp_path):
    def only_kwargs(**kwargs):
        kwargs["log_metric"]("seen", len(kwargs["completions"]))
        return [float(kwargs["trainer_state"].global_step)] * len(kwargs["prompts"])

    made = train(tiny_model, tokenizer, tmp_path, only_kwargs)
    assert [entry["seen"] for entry in made.state.log_history if "seen" in entry] == [4.0]


def test_the_run_s_own_columns_win_over_the_data_s(tiny_model, tokenizer, tmp_path, caplog):
    def count(completions, *, completion_tokens, prompts, **columns):
        assert {"level", "completion_ids"} <= set(columns)
        return [
            float(tokens) + 100 * prompt.endswith("=")
            for tokens, prompt in zip(completion_tokens, prompts, strict=True)
        ]

    data = rows(
        completion_tokens=lambda i: 4000,
        prompts=lambda i: "no",
        completions=lambda i: "no",
        level=lambda i: i,
    )
    with caplog.at_level(logging.WARNING, "posttrain"):
        made = train(tiny_model, tokenizer, tmp_path, count, data, max_steps=2)
    lengths = [len(ids) for ids in made.rollout.completion_ids]
    assert made.rollout.rewards_per_function[:, 0].tolist() == [100.0 + n for n in lengths]
    (said,) = [
        r.getMessage() for r in caplog.records if "does not reach" in r.getMessage()
    ]  # once, not each step
    assert "'completion_tokens', 'completions', 'prompts'" in said


# ---- messages


def test_messages_for_those_who_ask_and_text_for_the_rest(tiny_model, chat_tokenizer, tmp_path):
    def reads_messages(completions: list[list[dict]], **_):
        return [float(len(one[0]["content"])) + 1000 * (one[0]["role"] == "assistant") for one in completions]

    def reads_text(completions, **_):
        return [float(len(text)) for text in completions]

    def asked(completions, **_):
        return [float(len(one[-1]["content"])) for one in completions]

    specs = [reads_messages, reads_text, RewardSpec("asked", function=asked, completions_as="messages")]
    made = train(tiny_model, chat_tokenizer, tmp_path, specs, rows(chat=True))
    values = made.rollout.rewards_per_function
    lengths = torch.tensor([float(len(text)) for text in made.rollout.completions])
    assert torch.equal(values, torch.stack([lengths + 1000, lengths, lengths], dim=1))


def test_a_conversational_reward_that_does_not_ask_is_told_how(tiny_model, chat_tokenizer, tmp_path):
    def trl_style(completions, **_):
        return [float(len(one[0]["content"])) for one in completions]

    with pytest.raises(RewardError, match=r"annotate its parameter as completions: list\[list\[dict\]\]"):
        train(tiny_model, chat_tokenizer, tmp_path, trl_style, rows(chat=True))
    with pytest.raises(RewardError) as caught:  # no conversation: nothing to be told
        train(tiny_model, chat_tokenizer, tmp_path, trl_style, rows())
    assert "annotate" not in str(caught.value)


# ---- models and environments beside functions


def reward_model(tokenizer) -> LlamaForSequenceClassification:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_labels=1, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    config._name_or_path = "a/tiny-judge"
    return LlamaForSequenceClassification(config).eval()


@pytest.fixture
def half():
    """A reward that judges every second response; local, so that its worker need not import this module."""

    def half(completions, **_):
        return [0.5 if i % 2 else None for i, _ in enumerate(completions)]

    return half


def test_a_reward_model_beside_functions(tiny_model, tokenizer, tmp_path, half, caplog):
    model = reward_model(tokenizer)
    with caplog.at_level(logging.WARNING):
        made = train(
            tiny_model, tokenizer, tmp_path, [half, model, {"name": "format_regex", "args": {"pattern": "^"}}],
            trainer={"reward_processing_classes": [None, tokenizer, None]}, reward_weights=[1.0, 2.0, 4.0],
        )  # fmt: skip
    values = made.rollout.rewards_per_function
    texts = [p + c for p, c in zip(made.rollout.prompts, made.rollout.completions, strict=True)]
    batch = tokenizer(
        text=texts, return_tensors="pt", padding=True, padding_side="right", add_special_tokens=False
    )
    with torch.no_grad():
        expected = model(**batch).logits[:, 0]
    assert torch.allclose(values[:, 1], expected, atol=1e-5)
    assert values[:, 0].isnan().tolist() == [True, False] * 6
    assert values[:, 2].tolist() == [1.0] * 12
    assert made.reward_func_names == ["half", "tiny-judge", "format_regex"]
    total = made.judge.groups(4).rewards.reshape(-1)
    assert torch.allclose(total, values[:, 0].nan_to_num(0.0) + 2 * values[:, 1] + 4.0)
    assert "returned None" not in caplog.text


def test_a_reward_model_by_its_folder(tiny_model, tokenizer, tmp_path, half):
    folder = tmp_path / "judge"
    reward_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    made = train(tiny_model, tokenizer, tmp_path, [str(folder), half])
    assert made.reward_func_names == ["judge", "half"]
    assert not made.rollout.rewards_per_function[:, 0].isnan().any()


def test_a_broken_reward_model_stops_the_run(tiny_model, tokenizer, tmp_path, half):
    model = reward_model(tokenizer)
    model.score.weight.data[0, 0] = torch.nan
    with pytest.raises(RewardError, match="reward 'tiny-judge' gave nan for response 0, which is not finite"):
        train(
            tiny_model,
            tokenizer,
            tmp_path,
            [model, half],
            trainer={"reward_processing_classes": [tokenizer, None]},
        )


class Game:
    """An environment that owns a reward."""

    def reset(self, **row: Any) -> str | None:
        self.seen = row["prompt"][0]["content"]
        return None

    def get_reward(self) -> float:
        return float(len(self.seen))


def test_an_environment_s_own_reward_beside_functions(tiny_model, chat_tokenizer, tmp_path, half, caplog):
    def with_environments(completions, environments, prompts, log_metric, **columns):
        log_metric("played", len(environments))
        assert all(isinstance(text, str) for text in completions)
        assert len(columns["level"]) == len(environments) == 12
        return [
            float(game.seen == prompt[0]["content"])
            for game, prompt in zip(environments, prompts, strict=True)
        ]

    with caplog.at_level(logging.WARNING):
        made = train(
            tiny_model, chat_tokenizer, tmp_path, [half, with_environments], rows(chat=True, level=lambda i: i),
            trainer={"environment_factory": Game}, reward_weights=[1.0, 0.5],
        )  # fmt: skip
    assert made.reward_func_names == ["half", "with_environments", "Game"]
    values = made.rollout.rewards_per_function
    assert values[:, 0].isnan().tolist() == [True, False] * 6
    assert values[:, 1].tolist() == [1.0] * 12
    assert values[:, 2].tolist() == [float(len(prompt[0]["content"])) for prompt in made.rollout.prompts]
    assert made.judge.groups(4).weights.tolist() == [1.0, 0.5, 1.0]
    assert [entry["played"] for entry in made.state.log_history if "played" in entry] == [12.0]
    assert "'with_environments' reads the environments, so it runs in the training process" in caplog.text
    assert "returned None" not in caplog.text


def test_a_reward_by_name_may_read_the_environments(tiny_model, chat_tokenizer, tmp_path):
    (tmp_path / "mine.py").write_text(
        "async def played(completions, *, environments, scale=1.0):\n"
        "    return [scale * len(game.seen) for game in environments]\n"
    )
    spec = {"name": f"{tmp_path / 'mine.py'}:played", "args": {"scale": 3.0}}
    made = train(
        tiny_model, chat_tokenizer, tmp_path, [spec], rows(chat=True), trainer={"environment_factory": Game}
    )
    values = made.rollout.rewards_per_function
    assert torch.equal(values[:, 0], 3 * values[:, 1])
    assert made.reward_func_names == ["played", "Game"]


def test_environments_are_not_sent_to_other_processes(tiny_model, chat_tokenizer, tmp_path):
    def by_kwargs(completions, **kwargs):
        return [float(game.seen) for game in kwargs["environments"]]

    with pytest.raises(RewardError, match="name `environments` as a parameter of the reward"):
        train(
            tiny_model,
            chat_tokenizer,
            tmp_path,
            by_kwargs,
            rows(chat=True),
            trainer={"environment_factory": Game},
        )


def test_environments_are_named_where_there_are_none(tiny_model, tokenizer, tmp_path):
    def asks(completions, environments):
        return [0.0] * len(completions)

    with pytest.raises(RewardSpecError, match="'asks' asks for environments, and this run has none"):
        train(tiny_model, tokenizer, tmp_path, asks)


# ---- weights, and values that are none or too large


def test_weights_of_the_specs_count(tiny_model, tokenizer, tmp_path, half):
    specs = [{"name": "format_regex", "args": {"pattern": "^"}, "weight": 3.0}, half]
    made = train(tiny_model, tokenizer, tmp_path, specs)
    assert made.reward_weights.tolist() == [3.0, 1.0]
    assert made.judge.groups(4).rewards.reshape(-1).tolist() == [3.0, 3.5] * 6
    with pytest.raises(ValueError, match="give the weights in one place"):
        train(tiny_model, tokenizer, tmp_path, specs, reward_weights=[1.0, 1.0])


def test_responses_that_nothing_judges_are_mentioned(tiny_model, tokenizer, tmp_path, half, caplog):
    def never(completions, **_):
        return [None] * len(completions)

    with caplog.at_level(logging.WARNING, "posttrain"):
        train(tiny_model, tokenizer, tmp_path, never, max_steps=2)
        said = [r.getMessage() for r in caplog.records if "no reward could judge" in r.getMessage()]
        assert len(said) == 2  # all of them, at each step
        assert said[0].startswith("no reward could judge 12 of 12 responses")
        caplog.clear()
        train(tiny_model, tokenizer, tmp_path, half, max_steps=2)
    said = [r.getMessage() for r in caplog.records if "no reward could judge" in r.getMessage()]
    assert len(said) == 1
    assert "6 of 12 responses" in said[0]
    assert "prompt '" in said[0]


def test_a_reward_that_float32_does_not_hold_stops_the_run(tiny_model, tokenizer, tmp_path):
    def large(completions, **_):
        return [1e39 * (i % 2) for i, _ in enumerate(completions)]

    with pytest.raises(
        RewardError, match=r"reward 'large' gave 1e\+39 for completion 1, which is not finite in float32"
    ):
        train(tiny_model, tokenizer, tmp_path, [large])
    made = train(tiny_model, tokenizer, tmp_path, [large], reward_on_error="skip")
    assert made.rollout.counts["large"]["inf"] == 6
    assert made.rollout.rewards_per_function[:, 0].isnan().tolist() == [False, True] * 6
