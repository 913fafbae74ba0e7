"""Rows of masked-diffusion SFT: what of a conversation is masked and learned."""

from __future__ import annotations

import json

import pytest
from datasets import Dataset

from posttrain.trainers.masked.sft import MaskedSFT, tokenised
from posttrain.trainers.models.load import character_tokenizer

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
ASKED = [{"role": "user", "content": "2+2"}]


def learned(row: dict) -> str:
    tokenizer = character_tokenizer()
    tokenizer.chat_template = TEMPLATE
    ids = tokenised(Dataset.from_list([row]), tokenizer, MaskedSFT(), None)[0]["completion_ids"]
    return tokenizer.decode(ids)


def test_a_text_and_a_single_answer_end_once() -> None:
    assert learned({"prompt": "2+2=", "completion": "4"}) == "4<eos>"
    assert learned({"prompt": ASKED, "completion": [{"role": "assistant", "content": "4"}]}) == "4<eos>"


def test_a_tool_call_is_learned_as_the_template_writes_it() -> None:
    call = {"name": "add", "arguments": {"a": 2, "b": 2}}
    answer = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": call}]}
    said = learned({"prompt": ASKED, "completion": [answer]})
    assert said.endswith("<eos>")
    assert json.loads(said.removesuffix("<eos>")) == call


def test_several_answers_are_refused() -> None:
    turns = [
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "sure?"},
        {"role": "assistant", "content": "yes"},
    ]
    with pytest.raises(ValueError, match="one answer per row, and a row has 2"):
        learned({"prompt": ASKED, "completion": turns})
