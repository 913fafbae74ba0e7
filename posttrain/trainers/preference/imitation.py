"""Answers to imitate beside the pairs, for a method that imitates others than the chosen ones.

A row of pairs carries them in the column `imitation` (text, or messages) and, where they answer another
prompt than the pair's, `imitation_prompt`.
"""

from __future__ import annotations

import logging
import random
from dataclasses import replace
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from torch import nn
from transformers import PreTrainedTokenizerBase
from trl.data_utils import common_prefix_length

from posttrain.data import DataError, load_rows
from posttrain.data.row_layout import Needs
from posttrain.preferences.base import Imitation
from posttrain.recipe.data_sections import DataSection
from posttrain.rollout.base import Sampling, stable_seed
from posttrain.rollout.transformers_engine import TransformersEngine
from posttrain.trainers.engines.answers import Answer, answer_text, pad_id, prompt_ids, stop_ids
from posttrain.trainers.models.reference import share_from_main

logger = logging.getLogger(__name__)


class ImitatedAnswers:
    """A run's answers to imitate, put beside its pairs while the rows are prepared.

    wanted    whose answers the method imitates (`PairLoss.imitates`)
    model     the reference, or the model before training: it is sampled where nothing else answers
    answer    samples in its place; None: `model` does it itself, in this process
    sampling  how; None: up to half of max_length new tokens
    """

    def __init__(
        self,
        name: str,
        wanted: Imitation | None,
        model: Any,
        answer: Answer | None,
        sampling: Sampling | None,
    ) -> None:
        self.wanted = wanted
        sampled = wanted is not None and wanted.file is None
        for option, value in (("answer", answer), ("sampling", sampling)):
            if value is not None and not sampled:
                raise ValueError(
                    f"{name}: {option} has no effect: with these settings the reference's answers are not "
                    "imitated; leave it out"
                )
        if sampled and answer is None and not isinstance(model, nn.Module):
            raise ValueError(
                f"{name}: imitate 'reference' samples before training: pass the model itself, not its path"
            )
        self._model, self._answer, self._sampling = model, answer, sampling

    def beside(
        self, rows: Dataset, tokenizer: PreTrainedTokenizerBase, args: Any, *, training: bool
    ) -> Dataset:
        """`rows` with a column `imitation`, where the method wants one and they have none."""
        if self.wanted is None or "imitation" in rows.column_names:
            return rows
        seed = args.seed + (not training)
        if self.wanted.file is not None:
            talks = isinstance(rows[0]["prompt"], list)
            return pair_with_dataset(rows, read_imitation_rows(self.wanted.file, chat=talks), seed)
        limit = args.max_length
        sampling = self._sampling or Sampling(max_new_tokens=(limit or 1024) // 2)
        sampling = with_stops(sampling, self._model, tokenizer)
        answer = self._answer or answers_of(self._model, tokenizer, on_cpu=args.use_cpu)
        return sample_imitation(rows, tokenizer, answer, sampling, seed, limit)


def sample_imitation(
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    answer: Answer,
    sampling: Sampling,
    seed: int,
    limit: int | None = None,
) -> Dataset:
    """`rows` with one answer of the baseline to each prompt; row i draws from its own seed, whatever the ranks.

    limit  prompts of so many tokens are not answered: training drops them
    """
    state = PartialState()
    if state.is_main_process:
        logger.warning("sampling %d answers to imitate", len(rows))
    first = stable_seed("imitation", seed)
    prompts = {
        i: prompt_ids(tokenizer, rows[i]["prompt"])
        for i in range(state.process_index, len(rows), state.num_processes)
    }
    mine = [i for i, ids in prompts.items() if limit is None or len(ids) < limit]
    wanted = [replace(sampling, seed=first + i) for i in mine]
    texts = answer([prompts[i] for i in mine], wanted)
    found = dict(gather_object(list(zip(mine, texts, strict=True))))
    talks = isinstance(rows[0]["prompt"], list)
    said = [found.get(i, "") for i in range(len(rows))]
    answers = [[{"role": "assistant", "content": text}] for text in said] if talks else said
    return rows.add_column("imitation", answers)  # type: ignore[call-arg]  # the fingerprint is filled in


def answers_of(model: Any, tokenizer: PreTrainedTokenizerBase, *, on_cpu: bool) -> Answer:
    """Sampled from a model in memory, which is on this process's device meanwhile."""

    def answer(prompts: list[list[int]], sampling: list[Sampling]) -> list[str]:
        share_from_main(model)
        before = next(model.parameters()).device
        device = before if on_cpu or before.type != "cpu" else PartialState().device
        try:
            model.to(device)
            engine = TransformersEngine.of(model, pad_token_id=pad_id(tokenizer))
            return [answer_text(tokenizer, completion) for completion in engine.generate(prompts, sampling)]
        finally:
            model.to(before)

    return answer


def with_stops(sampling: Sampling, model: Any, tokenizer: PreTrainedTokenizerBase) -> Sampling:
    """The sampling with the tokens that end an answer, where none were given."""
    if sampling.stop_token_ids:
        return sampling
    config = model.generation_config if isinstance(model, nn.Module) else None
    return replace(sampling, stop_token_ids=stop_ids(tokenizer, config))


def pair_with_dataset(rows: Dataset, answers: Dataset, seed: int) -> Dataset:
    """`rows` with the answers of another dataset (columns prompt, completion) beside them, each as often as any
    other up to one, in an order drawn from `seed`."""
    missing = {"prompt", "completion"} - set(answers.column_names)
    if missing or not len(answers):
        raise DataError(
            f"the answers to imitate need rows with prompt and completion; missing {sorted(missing)}"
        )
    talks = isinstance(rows[0]["prompt"], list)
    if talks != isinstance(answers[0]["prompt"], list):
        kinds = ("messages", "text") if talks else ("text", "messages")
        raise DataError(
            f"the prompts of the pairs are {kinds[0]}, those of the answers to imitate {kinds[1]}; make them alike"
        )
    order: list[int] = []
    generator = random.Random(seed)
    while len(order) < len(rows):
        order += generator.sample(range(len(answers)), len(answers))
    picked = answers.select(order[: len(rows)])
    rows = rows.add_column("imitation_prompt", list(picked["prompt"]))  # type: ignore[call-arg]  # as above
    return rows.add_column("imitation", list(picked["completion"]))  # type: ignore[call-arg]  # as above


def read_imitation_rows(path: str, *, chat: bool) -> Dataset:
    """Rows of a local file with columns prompt and completion, read as a recipe's rows are.

    chat  the prompts of the pairs are messages
    """
    section = DataSection(path=path, chat=chat)
    return load_rows(section, needs=Needs(texts=("completion",), others=False)).rows


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
