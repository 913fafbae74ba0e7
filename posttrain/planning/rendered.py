"""A row as the trainer reads it: its tokens, where they begin and end, and which of them are learned from.

`plan` shows one row, `posttrain data preview` several; both from the functions that the trainers tokenise with.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from posttrain.data.files import Row
from posttrain.data.tokens import learned_ids, masked_ids, pair_ids, prompt_ids
from posttrain.planning.batch import plural
from posttrain.recipe import Recipe

EDGE = "│"
"""Between two tokens."""
_LINE_END = "⏎"


@dataclass(frozen=True)
class Part:
    """A stretch of tokens of one row. `learned`: the trainer learns them, rather than only reading them."""

    title: str
    tokenizer: Any
    ids: list[int]
    learned: bool

    @property
    def tokens(self) -> list[str]:
        """The text of each token."""
        return pieces(self.tokenizer, self.ids)

    def line(self, most: int) -> str:
        """One line; of a longer part `most` tokens are shown, from its beginning and its end."""
        if len(self.ids) <= most:
            shown = EDGE.join(self.tokens)
        else:
            first, last = (
                pieces(self.tokenizer, ids) for ids in (self.ids[: most // 2], self.ids[-most // 2 :])
            )
            left_out = len(self.ids) - len(first) - len(last)
            shown = f"{EDGE.join(first)} ... {left_out} more ... {EDGE.join(last)}"
        return f"{self.title} ({plural(len(self.ids), 'token')}): {shown}"


def parts_of(recipe: Recipe, row: Row, tokenizer: Any) -> list[Part]:
    """The row's parts in the order in which the model reads them; a pair's two answers follow one prompt.

    None of them for a model without a chat template whose method writes conversations as plain lines by itself.
    """
    if isinstance(row["prompt"], list) and tokenizer.chat_template is None:
        return []
    if "completion" in row and recipe.spec.family == "sft":
        parts = _masked_parts if recipe.objective.masked_diffusion else _sft_parts
        return list(parts(row, tokenizer))
    names = ("chosen", "rejected", "completion") if recipe.spec.family == "preference" else ()
    answers = [name for name in names if name in row]
    if not answers:
        options = template_options(recipe)
        return [Part("prompt", tokenizer, prompt_ids(tokenizer, row["prompt"], **options), False)]
    prompt, ids = pair_ids(tokenizer, row["prompt"], *(row[name] for name in answers))
    mark = "" if "label" not in row else ", good" if row["label"] else ", bad"
    learned = (Part(f"{name}{mark}", tokenizer, one, True) for name, one in zip(answers, ids, strict=True))
    return [Part("prompt", tokenizer, prompt, False), *learned]


def _masked_parts(row: Row, tokenizer: Any) -> Iterator[Part]:
    yield Part("prompt", tokenizer, prompt_ids(tokenizer, row["prompt"]), False)
    yield Part("learned", tokenizer, masked_ids(tokenizer, row["prompt"], row["completion"]), True)


def _sft_parts(row: Row, tokenizer: Any) -> Iterator[Part]:
    learned = learned_ids(tokenizer, row["prompt"], row["completion"])
    at = 0
    for start, end in learned.spans:
        if start > at:
            yield Part("read" if at else "prompt", tokenizer, learned.ids[at:start], False)
        yield Part("learned", tokenizer, learned.ids[start:end], True)
        at = end
    if at < len(learned.ids):
        yield Part("read", tokenizer, learned.ids[at:], False)


def template_options(recipe: Recipe) -> dict[str, Any]:
    return dict(vars(recipe.train).get("chat_template_kwargs") or {})


def pieces(tokenizer: Any, ids: list[int]) -> list[str]:
    """The text of each token. Bytes of a character that several tokens share stand with the last of them."""
    texts: list[str] = []
    held: list[int] = []
    for token in ids:
        held.append(token)
        text = tokenizer.decode(held)
        if text.endswith("\ufffd") and len(held) < 4:
            texts.append("")
            continue
        texts.append(text.replace("\n", _LINE_END))
        held = []
    if held:
        texts[-1] = tokenizer.decode(held).replace("\n", _LINE_END)
    return texts


def example_lines(recipe: Recipe, row: Row, tokenizer: Any, most: int = 32) -> list[str]:
    """One row for `plan`, a line a part."""
    return [part.line(most) for part in parts_of(recipe, row, tokenizer)]


def chat_warnings(recipe: Recipe, row: Row, tokenizer: Any) -> list[str]:
    """A chat model that is asked in plain text answers as it never learned to."""
    if not isinstance(row["prompt"], str) or tokenizer.chat_template is None or recipe.data.chat:
        return []
    return [
        "data.chat is false, but the model's tokenizer has a chat template: prompts reach it as bare text, without "
        "turns; set data.chat: true unless that is meant"
    ]
