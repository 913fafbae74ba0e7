"""What a tree search asks of a policy on disk: continuations with log-probs, the perplexity of a given answer, and the
probabilities of the four letters of a judgement. One model in this process serves all three."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from posttrain.answers.tool_calls import finished_share, read_calls, read_open_calls, word_overlap
from posttrain.preferences.call_search import Continuation, Tokens, fast_reward
from posttrain.preferences.deficiency import perplexity
from posttrain.rollout.base import Sampling
from posttrain.rollout.transformers_engine import TransformersEngine
from posttrain.trainers.engines.answers import pad_id, prompt_ids
from posttrain.trainers.models.policy_folder import load_dense
from posttrain.trainers.seam.faults import NotFinite

LETTERS = "ABCD"
QUESTION = "Is this answer (A) right, (B) nearly right, (C) mostly wrong or (D) wrong? It may be unfinished."
_OPENS = "("


def letter_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The token of each of A, B, C and D; ValueError where a letter is none."""
    found: list[int] = []
    for letter in LETTERS:
        number = tokenizer.convert_tokens_to_ids(letter)
        if not isinstance(number, int) or number == tokenizer.unk_token_id:
            raise ValueError(
                f"iTool: the policy judges by the letters {', '.join(LETTERS)}, and {letter!r} is no token of its "
                "tokenizer; take another model, or add the letters to model.scratch.alphabet"
            )
        found.append(number)
    return found


def judgement_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Any, answer: str) -> list[int]:
    """Tokens behind which the policy says its letter: the request, the answer so far, the question, an open bracket."""
    request = prompt if isinstance(prompt, str) else _last_of_user(prompt)
    asked = f"{request}\n{answer}\n{QUESTION}"
    opening: Any = tokenizer(_OPENS, add_special_tokens=False)["input_ids"]
    if tokenizer.chat_template is None or isinstance(prompt, str):
        return prompt_ids(tokenizer, f"{asked}\n") + opening
    return prompt_ids(tokenizer, [{"role": "user", "content": asked}]) + opening


def _last_of_user(messages: Sequence[dict[str, Any]]) -> str:
    return next((str(m["content"]) for m in reversed(messages) if m["role"] == "user"), "")


class GoldReader:
    """Scores fragments of an answer against its row's gold answer, see `call_search.Reader`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, gold: str, compat: str) -> None:
        self.tokenizer, self.gold, self.as_released = tokenizer, gold, compat == "reference"
        self.calls = read_calls(gold) or []

    def text(self, tokens: Tokens) -> str:
        found: Any = self.tokenizer.decode(list(tokens), skip_special_tokens=True)
        return found

    def score(self, before: str, fragment: str, ended: bool) -> float:
        if self.as_released or not self.calls:
            agrees = (")]" in fragment) == (")]" in self.gold)
            return fast_reward(agrees, word_overlap(fragment, self.gold))
        text = before + fragment
        written = read_open_calls(text)
        share = finished_share(written, self.calls)
        pieces, wanted = (sum(1 + len(call.arguments) for call in calls) for calls in (written, self.calls))
        if ended or ")]" in fragment:
            agrees = read_calls(text) is not None and pieces == wanted
        else:
            agrees = pieces <= wanted  # to be unfinished is a fault only where nothing is left to say
        if share is None:  # no name stands yet: neither right nor wrong, if it can still become one
            share = 0.5 if not ended and self._may_begin(text) else 0.0
        return fast_reward(agrees, share)

    def _may_begin(self, text: str) -> bool:
        """Whether a text without a name yet can go on to a gold call; JSON and reasoning are not read so early."""
        start = text.lstrip()
        if start.startswith(("{", "[{", "<")):
            return True
        name = start.removeprefix("[").lstrip()
        return any(call.name.startswith(name) for call in self.calls)


class CallPolicy:
    """The policy in `folder`. `rows` answers are forwarded at a time; what a batch holds decides its rounding, so
    callers that must agree to the bit make the same batches."""

    def __init__(
        self,
        folder: Path,
        tokenizer: PreTrainedTokenizerBase,
        *,
        base: Path,
        device: torch.device | None,
        rows: int = 16,
    ) -> None:
        self.folder, self.tokenizer, self.device, self.rows = folder, tokenizer, device, rows
        self.model: Any = load_dense(folder, base=base).eval().to(device)  # type: ignore[arg-type]  # as torch
        self.engine = TransformersEngine.of(self.model, pad_token_id=pad_id(tokenizer))
        self.letters = letter_ids(tokenizer)

    def write(self, prompts: list[list[int]], sampling: Sequence[Sampling]) -> list[Continuation]:
        """A continuation of each prompt. Log-probs are the model's own, not those of the heated distribution that it
        was drawn from."""
        drawn = self.engine.generate(prompts, sampling)
        answers = [list(one.token_ids) for one in drawn]
        logps = self.logps(prompts, answers)
        return [
            Continuation(tuple(one.token_ids), tuple(values), one.finish == "stop")
            for one, values in zip(drawn, logps, strict=True)
        ]

    def perplexities(self, prompts: list[list[int]], golds: list[list[int]]) -> list[float]:
        """Of each gold answer given its prompt."""
        return [perplexity(values) for values in self.logps(prompts, golds)]

    def logps(self, prompts: list[list[int]], answers: list[list[int]]) -> list[list[float]]:
        """The log-prob of each token of each answer, in nats."""
        found: list[list[float]] = []
        rows = [(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
        for part in _batches(rows, self.rows):
            whole = [prompt + answer for prompt, answer in part]
            ids, mask = self._padded(whole)
            taken = self._log_probs(ids, mask)[:, :-1].gather(2, ids[:, 1:, None]).squeeze(2)
            for row, (prompt, answer) in enumerate(part):
                values = taken[row, len(prompt) - 1 : len(prompt) - 1 + len(answer)].tolist()
                found.append(self._finite(values))
        return found

    def judgements(self, prompts: list[list[int]]) -> list[list[float]]:
        """The probabilities of A, B, C and D as the next token; together at most 1."""
        found: list[list[float]] = []
        for part in _batches(prompts, self.rows):
            ids, mask = self._padded(part)
            last = mask.sum(1) - 1
            logps = self._log_probs(ids, mask)[torch.arange(len(part)), last][:, self.letters]
            found += [self._finite(row) for row in logps.exp().tolist()]
        return found

    @torch.no_grad()
    def _log_probs(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float().log_softmax(-1)

    def _padded(self, rows: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
        """(B, T) ids and mask, padded on the right."""
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), pad_id(self.tokenizer))
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = 1
        return ids.to(self.device), mask.to(self.device)

    def _finite(self, values: list[float]) -> list[float]:
        if any(math.isnan(value) for value in values):
            raise NotFinite(
                f"searching with {self.folder}: the log-probs are not numbers, so the policy saved there is of no use; "
                "start again from the policy before it with a lower learning rate"
            )
        return values


def _batches(rows: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
