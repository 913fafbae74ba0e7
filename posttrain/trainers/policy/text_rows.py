"""Texts for a language modelling loss beside the policy's: read from a file, as tokens, every dropped one counted."""

from __future__ import annotations

from collections import Counter
from typing import Any

from datasets import Dataset

from posttrain.data import DataError, load_rows
from posttrain.data.files import iter_rows
from posttrain.data.row_layout import Needs
from posttrain.data.tokens import Learned, ended, learned_ids
from posttrain.recipe.data_sections import DataSection

_ANSWERS = Needs(texts=("completion",), others=False, turns=True)
EMPTY, CUT_AWAY = "empty", "nothing left to learn within ptx_max_length"


def read_texts(path: str, *, chat: bool) -> Dataset:
    """Rows of a local file: a column `text`, of which all is learned, or prompt and completion, or conversations, of
    which the answers are.

    chat  the policy's prompts are messages, so that plain prompts become messages too
    Raises DataError where the file is at fault.
    """
    first = next(iter_rows(path), None)
    if first is None:
        raise DataError(f"ptx_data {path!r}: the file has no rows")
    if "text" not in first:
        return load_rows(DataSection(path=path, chat=chat), needs=_ANSWERS).rows
    texts = [row.get("text") for row in iter_rows(path)]
    for number, text in enumerate(texts, start=1):
        if not isinstance(text, str):
            raise DataError(f"ptx_data {path!r}: the text of row {number} is {text!r}; give each row a text")
    return Dataset.from_dict({"text": texts})


class TokenTexts:
    """Texts as tokens, those without a token to learn from left out.

    rows     (ids, learned): learned[t] says whether token t is learned from; the first token never is
    dropped  texts left out, by reason; `cut` are shorter than they were
    """

    def __init__(self, texts: Dataset, tokenizer: Any, max_length: int) -> None:
        self.rows: list[tuple[list[int], list[bool]]] = []
        self.dropped: Counter[str] = Counter()
        self.cut = 0
        self.read = len(texts)
        for row in texts:
            found = _tokens(dict(row), tokenizer)
            if found is None:
                self.dropped[EMPTY] += 1
                continue
            learned = [label >= 0 for label in found.labels(-1)]
            learned[0] = False
            if not any(learned[:max_length]):
                self.dropped[CUT_AWAY] += 1
                continue
            self.cut += len(found.ids) > max_length
            self.rows.append((found.ids[:max_length], learned[:max_length]))
        if not self.rows:
            raise DataError(f"ptx: no text is left to learn from. {self.in_words()}")

    def in_words(self) -> str:
        tokens = sum(sum(learned) for _, learned in self.rows)
        said = f"{len(self.rows):,} of {self.read:,} texts, {tokens:,} tokens to learn"
        if self.cut:
            said += f"; {self.cut:,} cut at ptx_max_length"
        if self.dropped:
            reasons = "; ".join(f"{count:,} {reason}" for reason, count in sorted(self.dropped.items()))
            said += f"; {sum(self.dropped.values()):,} dropped ({reasons})"
        return said


def _tokens(row: dict[str, Any], tokenizer: Any) -> Learned | None:
    """None where there is nothing to learn."""
    if "text" not in row:
        found = learned_ids(tokenizer, row["prompt"], row["completion"])
        return found if any(end > start for start, end in found.spans) else None
    if not row["text"].strip():
        return None
    ids = tokenizer(ended(tokenizer, row["text"]))["input_ids"]
    return Learned(ids, [(0, len(ids))])
