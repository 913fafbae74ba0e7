"""Sampling answers from a policy on disk, for methods that train on what a policy says.

    generator = EngineGenerator(tokenizer)                     # or any callable of the same shape
    answers = generator(folder, prompts, sampling)

An engine of posttrain/rollout does the work; this file turns prompts into tokens and tokens into text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import PreTrainedTokenizerBase

from posttrain.process.phases import PHASES
from posttrain.rollout.base import Completion, Engine, Sampling
from posttrain.rollout.transformers_engine import TransformersEngine
from posttrain.trainers.models.policy_folder import load_dense
from posttrain.trainers.models.whole_weights import whole_weights_everywhere
from posttrain.trainers.seam.faults import NotFinite

Prompt = str | list[dict[str, Any]]
EngineOf = Callable[[Path], Engine]
"""Makes an engine that generates with the policy in a folder; the caller closes it."""
Answer = Callable[[list[list[int]], list[Sampling]], list[str]]
"""Prompts as tokens and how to sample each -> answers as text. Every rank calls it once, one without a prompt too: it
may hold collectives."""


class Generator(Protocol):
    """Answers of the policy in `folder`, one a prompt, as text without special tokens. Row i draws from
    sampling.seed + i (or each row has a `Sampling` of its own), so that an answer does not depend on how rows are
    cut into calls."""

    def __call__(
        self, folder: Path, prompts: list[list[int]], sampling: Sampling | Sequence[Sampling]
    ) -> list[str]: ...


class EngineGenerator:
    """A `Generator` over a rollout engine; the engine of one folder is kept until another folder is asked for."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, engine_of: EngineOf | None = None) -> None:
        self.tokenizer = tokenizer
        self._engine_of = engine_of or transformers_engine_of(tokenizer)
        self._held: tuple[Path, Engine] | None = None

    def __call__(
        self, folder: Path, prompts: list[list[int]], sampling: Sampling | Sequence[Sampling]
    ) -> list[str]:
        engine = self.open(folder)
        if not prompts:
            return []
        completions = engine.generate(prompts, sampling)
        if any(not math.isfinite(value) for one in completions for value in one.logprobs):
            raise NotFinite(
                f"sampling from {folder}: the log-probs are not finite, so the policy saved there is of no use; start "
                "again from the policy before it with a lower learning rate"
            )
        return [answer_text(self.tokenizer, completion) for completion in completions]

    def open(self, folder: Path) -> Engine:
        """The engine of the policy in `folder`. For every rank to call, with prompts or without: the ranks of an
        engine may wait for one another while it is built."""
        if self._held is None or self._held[0] != folder:
            self.close()
            with PHASES.within("loading the policy that answers"):
                self._held = (folder, self._engine_of(folder))
        return self._held[1]

    def close(self) -> None:
        """Frees the engine."""
        if self._held is not None:
            self._held[1].close()
            self._held = None
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def transformers_engine_of(
    tokenizer: PreTrainedTokenizerBase,
    *,
    base: Path | None = None,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> EngineOf:
    """Loads the folder's policy into this process; adapters are merged first."""

    def engine_of(folder: Path) -> Engine:
        with whole_weights_everywhere():
            model = load_dense(folder, base=base, dtype=dtype or "auto")
        model.eval().to(device)  # type: ignore[arg-type]  # None: stay
        return TransformersEngine.of(model, pad_token_id=pad_id(tokenizer))

    return engine_of


def answer_text(tokenizer: PreTrainedTokenizerBase, completion: Completion) -> str:
    """The new tokens as text, special tokens left out."""
    text: Any = tokenizer.decode(completion.token_ids, skip_special_tokens=True)
    return text


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    found = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    if not isinstance(found, int):
        raise ValueError("the tokenizer has neither a padding nor an end token")
    return found


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """Tokens the policy answers to: a text as it is, a conversation through the chat template."""
    if isinstance(prompt, str):
        tokens: Any = tokenizer(prompt)["input_ids"]
        return tokens
    rendered: Any = tokenizer.apply_chat_template(
        prompt, tokenize=True, return_dict=True, add_generation_prompt=True
    )
    return rendered["input_ids"]


def stop_ids(tokenizer: PreTrainedTokenizerBase, model_config: Any = None) -> tuple[int, ...]:
    """Tokens that end an answer: the tokenizer's end token, and those the model's generation config adds."""
    found: list[Any] = [tokenizer.eos_token_id]
    if model_config is not None:
        more = model_config.eos_token_id
        found += more if isinstance(more, list) else [more]
    return tuple(sorted({token for token in found if isinstance(token, int)}))


def cut_at(text: str, markers: tuple[str, ...]) -> str:
    """`text` up to the first of the markers."""
    ends = [text.find(marker) for marker in markers if marker in text]
    return text[: min(ends)] if ends else text
