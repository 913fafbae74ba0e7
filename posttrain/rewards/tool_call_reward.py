"""A reward for calls of tools, by their structure: names, arguments, values and their types."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from posttrain.answers.tool_calls import call_credit, read_calls, word_overlap
from posttrain.rewards.hooks import judges_each, yields_answers


def _calls_in_one_spelling(completions: Sequence[str], **_: Any) -> list[str | None]:
    """The calls with their arguments in order, None where a completion holds none."""
    found = [read_calls(text) for text in completions]
    return [
        None if calls is None else repr([(call.name, sorted(call.arguments.items())) for call in calls])
        for calls in found
    ]


@judges_each
@yields_answers(_calls_in_one_spelling)
def tool_call_match(
    completions: Sequence[str],
    *,
    answer: Sequence[Any],
    partial_credit: bool = True,
    compat: Literal["structure", "reference"] = "structure",
    **_: Any,
) -> list[float | None]:
    """1.0 if the completion makes the calls of `answer`, in any order and spelling; else its right pieces (a name, an
    argument) over all pieces of either side, or 0.0 without `partial_credit`. None where `answer` is missing.

    An argument of the right value and the wrong type is half a piece. A completion that is anything but calls is worth
    0.0; where `answer` is no call, 1.0 says that none was made. `compat: reference` is the released iTool's word
    overlap, which sees neither order nor structure: `f(a=1, b=2)` and `f(a=2, b=1)` are one to it.
    """
    scores: list[float | None] = []
    for text, gold in zip(completions, answer, strict=True):
        if gold is None:
            scores.append(None)
            continue
        if compat == "reference":
            scores.append(word_overlap(text, str(gold)))
            continue
        wanted = read_calls(str(gold)) or []
        written = read_calls(text)
        if written is None:
            scores.append(float(not wanted))
            continue
        credit = call_credit(written, wanted)
        scores.append(credit if partial_credit else float(credit == 1.0))
    return scores
