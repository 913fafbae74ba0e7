"""Answers to imitate beside the pairs, for RPO with another baseline than the chosen answers.

A row of pairs carries them in the column `imitation` (text, or messages) and, where they answer another
prompt than the pair's, `imitation_prompt`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl.data_utils import common_prefix_length

from posttrain.data import DataError
from posttrain.data.files import iter_rows
from posttrain.rollout.base import Sampling, stable_seed
from posttrain.trainers.generating import prompt_ids

Answer = Callable[[list[list[int]], list[Sampling]], list[str]]
"""Prompts as tokens and how to sample each -> answers as text."""


def sample_imitation(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, answer: Answer, sampling: Sampling, seed: int
) -> Dataset:
    """`rows` with one answer of the baseline to each prompt; row i draws from its own seed, whatever the ranks."""
    state = PartialState()
    mine = list(range(state.process_index, len(rows), state.num_processes))
    first = stable_seed("imitation", seed)
    prompts = [prompt_ids(tokenizer, rows[i]["prompt"]) for i in mine]
    texts = answer(prompts, [replace(sampling, seed=first + i) for i in mine]) if mine else []
    found = dict(gather_object(list(zip(mine, texts, strict=True))))
    talks = isinstance(rows[0]["prompt"], list)
    answers = [[{"role": "assistant", "content": found[i]}] if talks else found[i] for i in range(len(rows))]
    return rows.add_column("imitation", answers)  # type: ignore[call-arg]  # the fingerprint is filled in


def pair_with_dataset(rows: Dataset, answers: Dataset, seed: int) -> Dataset:
    """`rows` with the answers of another dataset (columns prompt, completion) beside them, each as often
    as any
    other up to one, in an order drawn from `seed`."""
    missing = {"prompt", "completion"} - set(answers.column_names)
    if missing or not len(answers):
        raise DataError(
            f"the answers to imitate need rows with prompt and completion; missing {sorted(missing)}"
        )
    order: list[int] = []
    generator = random.Random(seed)
    while len(order) < len(rows):
        order += generator.sample(range(len(answers)), len(answers))
    picked = answers.select(order[: len(rows)])
    rows = rows.add_column("imitation_prompt", picked["prompt"])  # type: ignore[call-arg]  # as above
    return rows.add_column("imitation", picked["completion"])  # type: ignore[call-arg]  # as above


def read_imitation_rows(path: str) -> Dataset:
    """Rows of a local file with columns prompt and completion."""
    return Dataset.from_list(list(iter_rows(path)))


def tokenize_imitation(rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """Adds `imitation_prompt_ids` and `imitation_ids`, tokenised as TRL tokenises a chosen answer."""

    def tokenize(row: dict[str, Any]) -> dict[str, list[int]]:
        prompt = row.get("imitation_prompt", row["prompt"])
        answer = row["imitation"]
        if isinstance(prompt, str):
            if not answer.endswith(tokenizer.eos_token):
                answer = answer + tokenizer.eos_token
            whole: Any = tokenizer(prompt + answer)["input_ids"]
        else:
            rendered: Any = tokenizer.apply_chat_template(prompt + answer, tokenize=True, return_dict=True)
            whole = rendered["input_ids"]
        start = common_prefix_length(prompt_ids(tokenizer, prompt), whole)
        return {"imitation_prompt_ids": whole[:start], "imitation_ids": whole[start:]}

    return rows.map(tokenize, desc="Tokenizing answers to imitate")
