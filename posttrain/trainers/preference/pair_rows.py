"""What happens to preference rows before they are trained on, and the account of it: in = trained + dropped.

TRL drops, without a word, every row whose prompt alone fills `max_length`, which empties multi-turn logs.
Here the oldest turns of a long conversation go first, what still does not fit is dropped, and both are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from posttrain.data.conversations import Dropped
from posttrain.data.mapping import as_messages, continued, split_pair

Message = dict[str, Any]

_LEFT = "_left_out"

PROMPT_FILLS = "prompt fills max_length"
EMPTY_ANSWER = "empty answer"


@dataclass
class PairCounts:
    """rows_in = trained + sum(dropped.values()).

    identical         trained pairs whose two answers are the same tokens: no gradient under DPO
    turns_dropped     trained pairs whose prompt lost its oldest turns
    answers_cut       trained pairs of which an answer was cut at max_length
    imitation_cut     trained pairs whose answer to imitate was cut there, or lies beyond it
    good, bad         trained rows of answers that are marked so
    same_prompt       trained rows whose mismatched answer is one to their own prompt
    """

    rows_in: int = 0
    trained: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    identical: int = 0
    turns_dropped: int = 0
    answers_cut: int = 0
    imitation_cut: int = 0
    good: int = 0
    bad: int = 0
    same_prompt: int = 0
    unit: str = "pairs"

    def drop(self, reason: str, rows: int = 1) -> None:
        if rows:
            self.dropped[reason] = self.dropped.get(reason, 0) + rows

    def after(self, read: int, dropped: Mapping[str, int]) -> PairCounts:
        """The account seen from further up: `read` rows, of which `dropped` never came here."""
        return replace(self, rows_in=read, dropped={**dropped, **self.dropped})

    def check(self) -> None:
        """RuntimeError if a row is unaccounted for."""
        if self.rows_in != self.trained + sum(self.dropped.values()):
            raise RuntimeError(f"rows lost without a reason: {self}")

    def in_words(self) -> str:
        """The account in one line."""
        reasons = "; ".join(f"{count} {reason}" for reason, count in sorted(self.dropped.items()))
        notes = [
            f"{count} {name}"
            for name, count in (
                ("marked good", self.good),
                ("marked bad", self.bad),
                ("with identical answers", self.identical),
                ("without their oldest turns", self.turns_dropped),
                ("with an answer cut at max_length", self.answers_cut),
                ("with an answer to imitate cut at max_length", self.imitation_cut),
                ("with a mismatched answer to their own prompt", self.same_prompt),
            )
            if count
        ]
        return (
            f"{self.unit}: {self.rows_in} in = {self.trained} trained + {sum(self.dropped.values())} dropped"
            + (f" ({reasons})" if reasons else "")
            + (f"; of the trained, {', '.join(notes)}" if notes else "")
        )


def join_conversations(rows: Dataset, counts: PairCounts) -> Dataset:
    """Pairs of messages with each answer behind its prompt, where it holds the prompt or the prompt is text.

    Rows of a recipe are joined already; this is for data sets handed to a trainer as they are published.
    """
    if not len(rows) or not isinstance(rows[0]["chosen"], list):
        return rows

    def join(row: dict[str, Any]) -> dict[str, Any]:
        pair = {"chosen": row["chosen"], "rejected": row["rejected"]}
        try:
            if "prompt" in row:
                prompt, pair = continued(as_messages(row["prompt"], "user"), pair, turns=False)
            else:
                prompt, pair["chosen"], pair["rejected"] = split_pair(**pair)
        except Dropped as reason:
            return {"prompt": [], **pair, _LEFT: str(reason)}
        return {"prompt": prompt, **pair, _LEFT: ""}

    # Columns go before they are made anew: text may become messages.
    old = [name for name in ("prompt", "chosen", "rejected") if name in rows.column_names]
    joined = rows.map(join, remove_columns=old, desc="Joining prompts and answers")
    for reason in sorted({*joined[_LEFT]} - {""}):
        counts.drop(reason, joined[_LEFT].count(reason))
    return joined.filter(lambda row: not row[_LEFT]).remove_columns(_LEFT)


def drop_oldest_turns(prompt: list[Message], fits: Callable[[list[Message]], bool]) -> list[Message]:
    """The longest tail of the conversation that fits, always with its system message and its last user turn.

    A tail starts with a user message, as chat templates want it. If nothing fits, the shortest tail is returned.
    """
    head = 0
    while head < len(prompt) and prompt[head]["role"] == "system":
        head += 1
    starts = [i for i in range(head + 1, len(prompt)) if prompt[i]["role"] == "user"]
    for start in [head, *starts]:
        shortened = prompt[:head] + prompt[start:]
        if fits(shortened):
            return shortened
    return prompt[:head] + prompt[starts[-1] :] if starts else prompt


def shorten_prompts(
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    counts: PairCounts,
    sides: Sequence[str] = ("chosen", "rejected"),
) -> Dataset:
    """Drops the oldest turns of conversations that would not fit `max_length` beside the longest of their answers.

    An answer may claim at most half of `max_length` from its prompt. Rows of plain text have no turns and stay.
    """
    if not len(rows) or not isinstance(rows[0]["prompt"], list):
        return rows
    length = _lengths(tokenizer)

    def shorten(row: dict[str, Any]) -> dict[str, Any]:
        prompt = row["prompt"]
        options = row.get("chat_template_kwargs") or {}
        alone = length(prompt, add_generation_prompt=True, **options)
        longest = max(length(prompt + row[side], **options) for side in sides) - alone
        budget = max(max_length - longest, max_length // 2)
        kept = drop_oldest_turns(
            prompt, lambda turns: length(turns, add_generation_prompt=True, **options) <= budget
        )
        return {"prompt": kept, "_turns_dropped": len(kept) < len(prompt)}

    rows = rows.map(shorten, desc="Fitting prompts")
    counts.turns_dropped += sum(rows["_turns_dropped"])
    return rows.remove_columns("_turns_dropped")


def account_tokens(rows: Dataset, max_length: int | None, counts: PairCounts) -> Dataset:
    """Drops rows with an answer of no tokens and counts what `max_length` does to the rest. Tokenised rows."""
    kept = rows.filter(lambda row: len(row["chosen_ids"]) > 0 and len(row["rejected_ids"]) > 0)
    counts.drop(EMPTY_ANSWER, len(rows) - len(kept))
    counts.trained = len(kept)
    for index in range(len(kept)):
        row: dict[str, Any] = kept[index]
        counts.identical += row["chosen_ids"] == row["rejected_ids"]
        if max_length is not None:
            longest = max(len(row["chosen_ids"]), len(row["rejected_ids"]))
            counts.answers_cut += len(row["prompt_ids"]) + longest > max_length
            if "imitation_ids" in row:
                counts.imitation_cut += (
                    len(row["imitation_prompt_ids"]) + len(row["imitation_ids"]) > max_length
                )
    return kept


def _lengths(tokenizer: PreTrainedTokenizerBase) -> Callable[..., int]:
    def length(messages: list[Message], **options: Any) -> int:
        tokens: Any = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, **options)
        return len(tokens["input_ids"])

    return length
