"""What happens to rows of marked answers before they are trained on: read, fitted, tokenised, each given an answer to
another prompt, and accounted for."""

from __future__ import annotations

import random
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from posttrain.data.conversations import Dropped, as_messages, cut, last_question
from posttrain.data.labels import label_of, unpaired
from posttrain.data.mapping import continued
from posttrain.data.tokens import pair_ids
from posttrain.rewards.messages import text_of
from posttrain.trainers.preference.pair_rows import EMPTY_ANSWER, PROMPT_FILLS, PairCounts, shorten_prompts

_KEPT = ("chat_template_kwargs",)


def marked_rows(rows: Dataset, counts: PairCounts) -> Dataset:
    """Rows of prompt, completion and label, from such rows or from pairs, of which each is two; `counts` in rows.

    Raises DataError for a label that is none.
    """
    pairs = "label" not in rows.column_names
    if pairs:
        counts.rows_in *= 2
    return Dataset.from_list(list(_read(rows, counts, pairs=pairs)))


def _read(rows: Dataset, counts: PairCounts, *, pairs: bool) -> Iterator[dict[str, Any]]:
    for row in rows:
        assert isinstance(row, Mapping)
        for one in unpaired(row, "chosen", "rejected") if pairs else (row,):
            try:
                yield _marked(one)
            except Dropped as reason:
                counts.drop(str(reason))


def _marked(row: Mapping[str, Any]) -> dict[str, Any]:
    label = label_of(row["label"])
    prompt, answer = row.get("prompt"), row["completion"]
    if not answer or not (isinstance(answer, list) or text_of(answer).strip()):
        raise Dropped(EMPTY_ANSWER)
    if isinstance(answer, list) or isinstance(prompt, list):
        if prompt:
            prompt, found = continued(as_messages(prompt, "user"), {"completion": answer}, turns=False)
            answer = found["completion"]
        else:
            prompt, answer = cut(as_messages(answer, "assistant"), last_question, "completion")
    elif not prompt:
        raise Dropped("no prompt")
    return {"prompt": prompt, "completion": answer, "label": label} | {
        name: row[name] for name in _KEPT if row.get(name)
    }


def tokenised_marks(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int | None, seed: int, counts: PairCounts
) -> Dataset:
    """Rows of `marked_rows` as prompt_ids, completion_ids, KL_completion_ids and label, as TRL's collator wants them.

    KL_completion_ids are the answer to another row's prompt, see `mismatched`.
    """
    if max_length is not None:
        rows = shorten_prompts(rows, tokenizer, max_length, counts, sides=("completion",))

    def tokenise(row: dict[str, Any]) -> dict[str, Any]:
        options = row.get("chat_template_kwargs") or {}
        prompt, (answer,) = pair_ids(tokenizer, row["prompt"], row["completion"], **options)
        return {"prompt_ids": prompt, "completion_ids": answer}

    others = [name for name in rows.column_names if name != "label"]
    made = rows.map(tokenise, remove_columns=others, desc="Tokenizing answers")
    kept = made.filter(lambda row: len(row["completion_ids"]) > 0)
    counts.drop(EMPTY_ANSWER, len(made) - len(kept))
    if max_length is not None:
        before = len(kept)
        kept = kept.filter(lambda row: len(row["prompt_ids"]) < max_length)
        counts.drop(PROMPT_FILLS, before - len(kept))
    if not len(kept):
        return kept
    prompts = [tuple(ids) for ids in kept["prompt_ids"]]
    answers = list(kept["completion_ids"])
    partners = mismatched(prompts, seed)
    counts.trained = len(kept)
    counts.good = sum(kept["label"])
    counts.bad = len(kept) - counts.good
    counts.same_prompt = sum(prompts[i] == prompts[j] for i, j in enumerate(partners))
    if max_length is not None:
        counts.answers_cut = sum(
            len(prompt) + len(answer) > max_length for prompt, answer in zip(prompts, answers, strict=True)
        )
    return kept.add_column("KL_completion_ids", [answers[j] for j in partners])


def mismatched(prompts: Sequence[Hashable], seed: int) -> list[int]:
    """For each row the row whose answer is set against its prompt: a permutation, drawn once.

    No row gets an answer to its own prompt as long as no prompt has more than half of the rows: rows stand sorted by
    prompt, in random order otherwise, and each takes the answer as many places on as the commonest prompt has rows.
    """
    order = list(range(len(prompts)))
    random.Random(seed).shuffle(order)
    groups: dict[Hashable, list[int]] = {}
    for row in order:
        groups.setdefault(prompts[row], []).append(row)
    arranged = [row for group in groups.values() for row in group]
    shift = max(1, min(max(map(len, groups.values())), len(prompts) // 2))
    partners = dict(zip(arranged, arranged[shift:] + arranged[:shift], strict=True))
    return [partners[row] for row in range(len(prompts))]
