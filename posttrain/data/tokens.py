"""Rows as tokens, as the trainers make them: what is read, and what of it is learned from.

The one place for this: lengths, the SFT trainer, `plan` and `posttrain data preview` all ask here. A tokenizer is
transformers', or anything that is called alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from posttrain.data.conversations import Dropped, Messages
from posttrain.data.decoding import DataError

Span = tuple[int, int]


@dataclass(frozen=True)
class Learned:
    """Tokens of a text, and the spans [start, end) of them that are learned from."""

    ids: list[int]
    spans: list[Span]

    def labels(self, ignored: int = -100) -> list[int]:
        """The tokens where they are learned from, `ignored` elsewhere."""
        labels = [ignored] * len(self.ids)
        for start, end in self.spans:
            labels[start:end] = self.ids[start:end]
        return labels


def prompt_ids(tokenizer: Any, prompt: str | Messages, **options: Any) -> list[int]:
    """Tokens that the policy answers to: a text as it is, a conversation through the chat template."""
    if isinstance(prompt, str):
        return _text_ids(tokenizer, prompt)
    return _chat_ids(tokenizer, prompt, add_generation_prompt=True, **options)


def whole_ids(tokenizer: Any, prompt: str | Messages, answer: str | Messages, **options: Any) -> list[int]:
    """Prompt and answer as one text: a text with an end token, a conversation through the chat template."""
    if isinstance(prompt, str) or isinstance(answer, str):
        return _text_ids(tokenizer, f"{prompt}{ended(tokenizer, str(answer))}")
    return _chat_ids(tokenizer, [*prompt, *answer], **options)


def learned_ids(tokenizer: Any, prompt: str | Messages, answer: str | Messages, **options: Any) -> Learned:
    """Prompt and answer as one text (`whole_ids`), and what of it is learned from.

    Of a conversation the assistant's turns are learned from, with what the template puts at their end; what users and
    tools say between them is read only.
    """
    asked = prompt_ids(tokenizer, prompt, **options)
    ids = whole_ids(tokenizer, prompt, answer, **options)
    if isinstance(prompt, str) or isinstance(answer, str):
        return Learned(ids, [(_common(asked, ids), len(ids))])
    turns = [*prompt, *answer]
    spans = []
    for i in range(len(prompt), len(turns)):
        if turns[i]["role"] == "assistant":
            before = asked if i == len(prompt) else prompt_ids(tokenizer, turns[:i], **options)
            start = _common(before, ids)
            end = len(ids) if i == len(turns) - 1 else _end_of_turn(tokenizer, turns, i, ids, **options)
            spans.append((start, end))
    return Learned(ids, spans)


def masked_ids(tokenizer: Any, prompt: str | Messages, answer: str | Messages) -> list[int]:
    """What a masked-diffusion model learns, with one end token: a text as it is, a conversation's answer as the chat
    template renders it, tool calls too. Raises DataError for several answers in one row."""
    end = tokenizer(tokenizer.eos_token, add_special_tokens=False)["input_ids"]
    if isinstance(answer, str):
        return [*tokenizer(answer, add_special_tokens=False)["input_ids"], *end]
    learned = learned_ids(tokenizer, prompt, answer)
    if len(learned.spans) != 1:
        raise DataError(
            f"a masked-diffusion model learns one answer per row, and a row has {len(learned.spans)}"
        )
    ((start, stop),) = learned.spans
    ids = learned.ids[start:stop]
    return [*(ids[: ids.index(end[0])] if end[0] in ids else ids), *end]


def pair_ids(
    tokenizer: Any, prompt: str | Messages, *answers: str | Messages, **options: Any
) -> tuple[list[int], list[list[int]]]:
    """A prompt and its answers as TRL's preference trainers tokenise them: (prompt, each answer)."""
    asked = prompt_ids(tokenizer, prompt, **options)
    wholes = [whole_ids(tokenizer, prompt, answer, **options) for answer in answers]
    start = min((_common(asked, whole) for whole in wholes), default=len(asked))
    return asked[:start], [whole[start:] for whole in wholes]


def ended(tokenizer: Any, answer: str) -> str:
    """An answer of text with the token that ends it. DataError where the tokenizer has none."""
    if tokenizer.eos_token is None:
        raise DataError(
            "the tokenizer has no end token (eos_token), so no answer of text could ever end; set one"
        )
    return answer if answer.endswith(tokenizer.eos_token) else answer + tokenizer.eos_token


class TemplateCheck:
    """Whether a chat template takes the conversations of a data set.

    An order of roles that it has taken once is not asked for again; one that it refuses is, since the reason may lie in
    what is said.
    """

    def __init__(self, tokenizer: Any, **options: Any) -> None:
        self.tokenizer = tokenizer
        self.options = options
        self._taken: set[tuple[str, ...]] = set()

    def __call__(self, row: Mapping[str, Any]) -> None:
        """Raises DataError without a template, Dropped where the template refuses the row."""
        prompt = row["prompt"]
        if not isinstance(prompt, list):
            return
        if self.tokenizer.chat_template is None:
            raise DataError(
                "prompts are messages, but the model's tokenizer has no chat template; set data.chat: false and write "
                "a template, or name a tokenizer that has one in model.tokenizer"
            )
        answers = [
            row[name] for name in ("completion", "chosen", "rejected") if isinstance(row.get(name), list)
        ]
        for turns, asking in [(prompt, True), *(([*prompt, *answer], False) for answer in answers)]:
            key = (str(asking), *(_kind(message) for message in turns))
            if key in self._taken:
                continue
            if (reason := self._refusal(turns, asking)) is not None:
                raise Dropped(f"the chat template refuses it: {reason}")
            self._taken.add(key)

    def _refusal(self, turns: Messages, asking: bool) -> str | None:
        from jinja2 import TemplateError

        try:
            self.tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=asking, **self.options
            )
        except (TemplateError, TypeError, ValueError) as error:
            return (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        return None


def _kind(message: Mapping[str, Any]) -> str:
    return message["role"] + ("+calls" if message.get("tool_calls") else "")


def _end_of_turn(tokenizer: Any, turns: Messages, i: int, ids: list[int], **options: Any) -> int:
    """Where turn i ends in the tokens of the whole conversation."""
    until = _chat_ids(tokenizer, turns[: i + 1], **options)
    if ids[: len(until)] == until:
        return len(until)
    # Some templates render the last answer differently (an empty thought in front): measure the turn behind it.
    onward = _chat_ids(tokenizer, turns[: i + 2], **options)
    head = _chat_ids(tokenizer, turns[:i], **options)
    behind = _chat_ids(tokenizer, [*turns[:i], turns[i + 1]], **options)[len(head) :]
    end = len(onward) - len(behind)
    if ids[: len(onward)] == onward and onward[end:] == behind:
        return end
    raise DataError(
        "the chat template renders an earlier answer differently once the conversation goes on; "
        "set train.assistant_only_loss: true, or train on single answers"
    )


def _text_ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text)["input_ids"]


def _chat_ids(tokenizer: Any, messages: Messages, **options: Any) -> list[int]:
    return tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, **options)["input_ids"]


def _common(ids: list[int], other: list[int]) -> int:
    """How many tokens two texts have in common at their beginning."""
    count = 0
    for one, two in zip(ids, other, strict=False):
        if one != two:
            break
        count += 1
    return count
