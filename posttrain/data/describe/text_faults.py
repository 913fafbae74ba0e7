"""Faults inside of texts: marks of chat templates, speakers' names, the prompt in its answer, nothing, half a sentence.

Each is a rule of thumb that names what it looks for; counts are for reading, nothing is dropped by them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from posttrain.data.describe.duplicates import normalised

CHAT_TOKENS = "chat-template marks"
SPEAKERS = "speakers' names"
ECHO = "prompt in the answer"
EMPTY = "empty"
CUT = "ends in mid-sentence"
FAULTS = (CHAT_TOKENS, SPEAKERS, ECHO, EMPTY, CUT)
SHORTEST_ECHO = 20
"""Characters: a shorter prompt may stand in its answer by chance."""
SHORTEST_CUT = 60
"""Characters: a shorter answer need be no sentence."""
READ_FOR_ECHO = 20_000
"""Characters of an answer in which its prompt is looked for."""

_TOKENS = re.compile(
    r"<\|[A-Za-z][A-Za-z0-9_]{1,40}\|>|<｜[^｜\n]{1,40}｜>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>"
    r"|<(?:eos|bos|pad|unk)>|\A\s*<s>|</s>\s*\Z|\[/?(?:AVAILABLE_TOOLS|TOOL_CALLS|SYSTEM_PROMPT)\]"
)
_SPEAKER = re.compile(
    r"^[ \t]*(?:(?:Human|Assistant|User|USER|ASSISTANT|HUMAN):(?!:)"
    r"|#{2,3} ?(?:Human|Assistant|User|Instruction|Response):)",
    re.MULTILINE,
)
_ENDED = re.compile(r"""[.!?…。！？」』)\]}"'”’*`_~|>:;$=-]\s*\Z""")
_BREAK = re.compile(
    r"[,(\[{‘“\\]\Z|\b(?:and|or|the|of|to|a|an|with|for|in|is|are|that|which|by)\Z", re.IGNORECASE
)
_LAST_WORDS = 8  # of the last line: a heading or an item of a list is shorter


def fault_finders(special: Sequence[str] = ()) -> dict[str, Callable[[str], re.Match[str] | None]]:
    """What looks at one text alone; `special` are the tokens of a tokenizer that stands for no text."""
    own = [re.escape(token) for token in special if len(token) > 2]
    tokens = re.compile("|".join([*own, _TOKENS.pattern])) if own else _TOKENS
    return {CHAT_TOKENS: tokens.search, SPEAKERS: _SPEAKER.search}


def holds_prompt(prompt: str, answer: str) -> bool:
    """Whether the whole prompt, normalised, stands in the answer."""
    asked = normalised(prompt)
    if len(asked) < SHORTEST_ECHO:
        return False
    # most answers lack the prompt's longest word: they need not be normalised
    if answer.isascii() and max(asked.split(), key=len) not in answer.casefold():
        return False
    return asked in normalised(answer[: max(READ_FOR_ECHO, 2 * len(prompt))])


def ends_in_mid_sentence(answer: str) -> bool:
    """Whether an answer of some length breaks off: an open code fence or box, a comma, a word that asks for another,
    or a long last line without an end.

    Languages without blanks between words are only judged by fences and boxes.
    """
    text = answer.rstrip()
    if len(text) < SHORTEST_CUT:
        return False
    if text.count("```") % 2 or _box_is_open(text):
        return True
    last = text.rpartition("\n")[2].strip()
    words = last.split()
    if not last or "```" in last or _ENDED.search(last):
        return False
    if len(words) >= 4 and _BREAK.search(last):
        return True
    # A last word in capitals or with digits may be an answer or a name: "#### 18", "Best, Ann".
    return (
        len(words) >= _LAST_WORDS
        and last[-1].isalpha()
        and words[-1].islower()
        and words[0] not in ("#", "-", "*")
    )


def _box_is_open(text: str) -> bool:
    start = text.rfind("\\boxed{")
    if start < 0:
        return False
    depth = 0
    for character in text[start + len("\\boxed") :]:
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return False
    return True
