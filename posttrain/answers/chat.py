"""What of a model's text is its answer to the user: no reasoning, no marks of the chat template, no further turns."""

from __future__ import annotations

import re

REASONING_TAGS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<reason>", "</reason>"),
    ("◁think▷", "◁/think▷"),
    ("<|channel|>analysis", "<|channel|>final<|message|>"),
    ("[THINK]", "[/THINK]"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
)
_HEADER = re.compile(
    r"^\s*(?:<\|im_start\|>\s*assistant|<\|start_header_id\|>assistant<\|end_header_id\|>|<start_of_turn>model"
    r"|<\|assistant\|>|<｜Assistant｜>|\[/INST\])\s*",
)
_END = re.compile(
    r"<\|(?:im_end|im_start|endoftext|eot_id|end_of_text|end|return|eom_id|end_of_turn|user|start_header_id|eos|"
    r"begin_of_text|EOT|END_OF_TURN_TOKEN)\|>|<｜(?:end▁of▁sentence|User|begin▁of▁sentence)｜>|</s>|<end_of_turn>"
    r"|<start_of_turn>|<eos>|<EOT>|\[INST\]|\[EOS\]",
)


def after_reasoning(text: str, opened: bool = False) -> str | None:
    """The text behind its reasoning, or None if the reasoning does not end. `opened`: the prompt began it."""
    closed = False
    for opening, ending in REASONING_TAGS:
        end = text.rfind(ending)
        if end >= 0:
            text, closed = text[end + len(ending) :], True
        if opening in text:
            return None
    return None if opened and not closed else text


def own_turn(text: str) -> str:
    """The text up to the first mark that ends the model's turn, without the mark that began it."""
    text = _HEADER.sub("", text)
    end = _END.search(text)
    return text[: end.start()] if end else text
