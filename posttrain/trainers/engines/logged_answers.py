"""Answers of the data among the samples of a rollout: tokenised, put into the last places of their groups, marked.

Which places, and what is made of them in the loss, is rollout/logged.py's rule; the loss itself stands in
objectives/logged_rows.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from posttrain.data import DataError
from posttrain.data.reward_columns import value_of
from posttrain.data.tokens import ended, whole_ids
from posttrain.data.values import plain
from posttrain.rollout.base import Completion, Sampling
from posttrain.rollout.base import rows as one_a_row
from posttrain.rollout.logged import NOT_WITH, LoggedRule
from posttrain.trainers.engines.rollout_host import RolloutHost
from posttrain.trainers.engines.rollout_plan import RolloutPlan, Rows

_AT_ONCE = 256  # rows tokenised together
Generate = Callable[[list[list[int]], Sequence[Sampling]], list[Completion]]


def logged_problems(host: RolloutHost, plan: RolloutPlan) -> Iterator[str]:
    """Why a trainer cannot put logged answers into its groups, a sentence each."""
    rule = plan.logged
    if rule is None:
        return
    yield from rule.faults(host.num_generations)
    if (reason := host.objective.refuses_logged) is not None:
        yield f"logged does not go with {type(host.objective).__name__}: {reason}"
    if host.tools or host.environment_factories is not None:
        yield "logged does not go with tools: an answer of the data has had no turns with them"
    for name, reason in NOT_WITH.items():
        if getattr(plan, name) is not None:
            yield f"logged does not go with {name}: {reason}"
    if rule.treatment == "behaviour" and rule.logprobs_column is None:
        yield "logged: treatment 'behaviour' needs logprobs_column"
    if host.args.remove_unused_columns:
        yield "logged reads a column of the rows; set remove_unused_columns to False"


class LoggedAnswers:
    """The logged answers of a trainer's rows.

    too_long  answers that were left out so far, being longer than the run's completions
    Its questions raise DataError for a cell that holds no answer, or log-probs that are not those of its tokens.
    """

    def __init__(self, host: RolloutHost, rule: LoggedRule) -> None:
        self.host, self.rule = host, rule
        self.too_long = 0

    @property
    def places(self) -> int:
        """Places of a group that they may take."""
        return self.rule.places(self.host.num_generations)

    def survey(self, rows: Sequence[Mapping[str, Any]], prompts_of: Callable[[Rows], list[list[int]]]) -> str:
        """Reads the answers of all rows once, so that no rollout meets one it cannot take, and says what there is.
        Raises DataError, also where no row has an answer that fits."""
        with_any = answers = 0
        for start in range(0, len(rows), _AT_ONCE):
            part = [dict(rows[at]) for at in range(start, min(start + _AT_ONCE, len(rows)))]
            for row, prompt in zip(part, prompts_of(part), strict=True):
                found = len(self.of_row(row, prompt))
                answers, with_any = answers + found, with_any + bool(found)
        long, self.too_long = self.too_long, 0
        limit = self.host.max_completion_length
        left_out = f"; {long} are longer than max_new_tokens {limit} and left out" if long else ""
        if not answers:
            raise DataError(
                f"rollout.logged: none of {len(rows)} rows has an answer in column {self.rule.column!r}{left_out}"
            )
        size = self.host.num_generations
        return (
            f"logged answers: {answers} in {with_any} of {len(rows)} rows{left_out}; at most {self.places} of "
            f"{size} places of a group, treatment {self.rule.treatment}; samples fill what they leave"
        )

    # Into the groups

    def among(
        self, rows: Rows, prompts: list[list[int]], sampling: Sampling, generate: Generate
    ) -> list[Completion]:
        """A completion a row, this rank's of whole groups or of parts of them: sampled, but for the last places of each
        group, which its row's logged answers take as far as they go. What is sampled is what would be without them."""
        host = self.host
        size, first = host.num_generations, host.accelerator.process_index * len(rows)
        found: dict[int, list[Completion]] = {}
        completions: list[Completion | None] = []
        for at, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
            group, place = divmod(first + at, size)
            if group not in found:
                found[group] = self.of_row(row, prompt)[: self.places]
            given = found[group]
            completions.append(given[size - 1 - place] if place >= size - len(given) else None)
        own = [one for _, one in one_a_row(prompts, sampling)]
        wanted = [at for at, one in enumerate(completions) if one is None]
        if wanted:
            made = generate([prompts[at] for at in wanted], [own[at] for at in wanted])
            for at, one in zip(wanted, made, strict=True):
                completions[at] = one
        else:  # the ranks generate together: one with nothing to sample makes a token that nobody reads
            generate(prompts[:1], [replace(own[0], max_new_tokens=1)])
        return [one for one in completions if one is not None]

    # From a row

    def of_row(self, row: Mapping[str, Any], prompt: list[int]) -> list[Completion]:
        """The row's answers that fit, in their order. prompt: its tokens, as the policy reads them."""
        answers = answers_of(plain(value_of(row, self.rule.column)), self.rule.column)
        stored = self._stored(row, len(answers))
        found = []
        for answer, logprobs in zip(answers, stored, strict=True):
            ids = self.ids_of(row["prompt"], answer, prompt)
            if len(ids) > self.host.max_completion_length:
                self.too_long += 1
                continue
            if logprobs is not None and len(logprobs) != len(ids):
                raise DataError(
                    f"rollout.logged: column {self.rule.logprobs_column!r} has {len(logprobs)} log-probs for an answer "
                    f"of {len(ids)} tokens, its end token included; store one a token of this model's tokenizer, or "
                    "take treatment: none or shaped"
                )
            found.append(Completion(ids, logprobs or [0.0] * len(ids), "stop", (), logged=True))
        return found

    def ids_of(self, question: Any, answer: str | dict[str, Any], prompt: list[int]) -> list[int]:
        """The answer's tokens up to and with the end token, as the policy would have sampled them."""
        host, tokenizer = self.host, self.host._tokenizer
        if isinstance(question, list):
            turn = answer if isinstance(answer, dict) else {"role": "assistant", "content": answer}
            options: Any = host.args.chat_template_kwargs or {}
            whole = whole_ids(tokenizer, question, [turn], **options)
            if whole[: len(prompt)] != prompt:
                raise DataError(
                    f"rollout.logged: with an answer of column {self.rule.column!r} behind it the chat template "
                    f"renders the prompt otherwise than the policy is asked it: {question!r}; take a template that "
                    "keeps it (model.chat_template)"
                )
            ids = whole[len(prompt) :]
        elif isinstance(answer, str):  # by itself: the prompt's tokens are as the policy is asked them
            ids = tokenizer(ended(tokenizer, answer), add_special_tokens=False)["input_ids"]
        else:
            raise DataError(
                f"rollout.logged: column {self.rule.column!r} holds messages but the prompt is text; set "
                "data.chat: true"
            )
        ends = set(host.eos_token_ids)
        cut = next((at + 1 for at, token in enumerate(ids) if token in ends), None)
        return ids[:cut] if cut is not None else [*ids, int(tokenizer.eos_token_id)]

    def _stored(self, row: Mapping[str, Any], count: int) -> list[list[float] | None]:
        """The log-probs of each answer of a row, for `behaviour`; else None for each."""
        name = self.rule.logprobs_column
        if name is None:
            return [None] * count
        value = plain(value_of(row, name)) or []
        each = value if value and isinstance(value[0], list | tuple) else [value] if value else []
        if len(each) != count:
            raise DataError(
                f"rollout.logged: column {name!r} has log-probs for {len(each)} answers, and column "
                f"{self.rule.column!r} has {count}; store a list of them for each answer"
            )
        for one in each:
            if not all(isinstance(number, int | float) and math.isfinite(number) for number in one):
                raise DataError(f"rollout.logged: column {name!r} holds what is no log-prob: {one!r}")
        return [[float(number) for number in one] for one in each]

    # Into the buffer

    def mark(self, output: dict[str, Any], completions: Sequence[Completion]) -> Tensor:
        """Says in this rank's share of a rollout which rows they are, and how they are weighed. (B, 1) bool."""
        ids = output["completion_ids"]
        logged = torch.tensor([one.logged for one in completions], device=ids.device)
        output["logged"] = logged
        if self.rule.treatment == "behaviour":
            stored = torch.zeros(ids.shape, device=ids.device)
            for row, one in enumerate(completions):
                if one.logged:
                    stored[row, : len(one.logprobs)] = torch.tensor(one.logprobs, device=ids.device)
            output["logged_logps"] = stored
        if self.rule.treatment == "shaped":
            output["logged_gamma"] = torch.full((len(logged),), self.rule.gamma, device=ids.device)
        return logged.unsqueeze(1)


def answers_of(value: Any, column: str) -> list[str | dict[str, Any]]:
    """The answers in a cell: a text, an assistant's message, or a list of either; [] where it is empty."""
    if value is None or value == "" or value == []:
        return []
    if isinstance(value, str | Mapping):
        return [_answer(value, column)]
    if isinstance(value, list):
        return [_answer(one[0] if isinstance(one, list) and len(one) == 1 else one, column) for one in value]
    raise DataError(
        f"rollout.logged: column {column!r} holds a {type(value).__name__}, and an answer is text"
    )


def _answer(value: Any, column: str) -> str | dict[str, Any]:
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, Mapping) and value.get("role") == "assistant":
        return {name: part for name, part in value.items() if part is not None}
    raise DataError(
        f"rollout.logged: column {column!r} holds {value!r}, which is no answer: a text, or one message of the "
        "assistant"
    )
