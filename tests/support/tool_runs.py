"""A model that calls a tool with most of what it writes, and an environment that draws lots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tiny_run import arguments

from posttrain.environments.tool_specs import EnvironmentSpec
from posttrain.environments.toolbox import Toolbox
from posttrain.trainers.models.load import character_tokenizer, scratch_llama
from posttrain.trainers.policy.tool_arguments import tool_arguments

CHAT = (
    "{% for m in messages %}{% if m.role == 'tool' %}={{ m.content }}>{% elif m.role == 'assistant' %}"
    "{% for c in m.tool_calls or [] %}b{% for n, v in c.function.arguments.items() %}{{ v }}{% endfor %}"
    "<!-- {{ c.function }} -->{% endfor %}{{ m.content or '' }}{{ eos_token }}{% else %}{{ m.content }}>{% endif %}"
    "{% endfor %}"
)
CALLS: dict[str, Any] = {  # every b begins a call, whose argument ends with the turn
    "defaults": {"role": "assistant"},
    "start_anchor": ">",
    "fields": {
        "tool_calls": {
            "open": "b",
            "close_pattern": "<eos>",
            "repeats": True,
            "content": "xml-inline",
            "content_args": {"tag_pattern": "(?P<key>x?)(?P<value>[ab]*)", "value_parser": {"name": "text"}},
            "transform": {"type": "function", "function": {"name": "poke", "arguments": {"x": "b"}}},
        },
        "content": {"close_pattern": "<eos>", "content": "text"},
    },
}
LOTS = '''
import random


class Lots:
    """Answers with letters it draws."""

    def reset(self, **row):
        self.pokes = 0
        return random.choice("ab")

    def poke(self, x: str) -> str:
        """Pokes.

        Args:
            x: with what
        """
        self.pokes += 1
        return random.choice("ab") * 2

    def get_reward(self):
        return float(self.pokes)
'''


def talker() -> Any:
    """Its tokenizer: few letters, so that a random model calls often."""
    tokenizer = character_tokenizer("ab=>")
    tokenizer.chat_template = CHAT
    told: Any = tokenizer
    told.response_template = CALLS
    return tokenizer


def talking_model(tokenizer: Any, seed: int = 0) -> Any:
    """Random, and in favour of "a", "b" and the end of a turn."""
    model = scratch_llama(tokenizer, hidden_size=32, layers=2, heads=2, max_positions=256, seed=seed)
    ids = tokenizer.get_vocab()
    with torch.no_grad():
        model.model.norm.weight.add_(2.0)
        for token, row in ids.items():
            if token not in ("a", "b", "<eos>"):
                model.lm_head.weight[row] *= 0.05
    return model


def conversations(count: int = 12) -> Dataset:
    texts = ["a" * (1 + i % 3) + "b" * (i % 2) for i in range(count)]
    return Dataset.from_list([{"prompt": [{"role": "user", "content": text}]} for text in texts])


def lots(folder: Path, source: str = LOTS, **limits: Any) -> Toolbox:
    (folder / "lots.py").write_text(source)
    return Toolbox([], EnvironmentSpec(f"{folder / 'lots.py'}:Lots", **limits))


def tool_trainer(
    trainer_class: Any, config_class: Any, folder: Path, toolbox: Toolbox, rewards: Any = None, **extra: Any
) -> Any:
    tokenizer = talker()
    given = {"max_completion_length": 40, "max_tool_calling_iterations": 3, "reward_workers": 1, **extra}
    args = config_class(**arguments(folder, **given))
    made = trainer_class(
        talking_model(tokenizer), rewards, args, conversations(), processing_class=tokenizer,
        **tool_arguments(toolbox, tokenizer),
    )  # fmt: skip
    made.turns.toolbox = toolbox
    return made
