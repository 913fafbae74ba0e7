"""A reward model in use: texts to scores, tokenised exactly as it was trained, frozen, and in no checkpoint.

It lies in this process, or a vLLM server runs it, which is sent the same tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from posttrain.data.tokens import whole_ids
from posttrain.rewards.model_reward import ModelReward
from posttrain.rewards.runner import RewardError
from posttrain.rollout.model_folder import tokenizer_of
from posttrain.trainers.models.reward_heads import load_reward_model
from posttrain.trainers.models.whole_weights import whole_weights_everywhere

logger = logging.getLogger(__name__)


class TextScorer:
    """`score(prompts, completions)` gives a number for each; `cut` of the last call's texts had to lose their start.

    Prompts and completions are texts, which are joined and get the end token, or conversations, which go through the
    reward model's own chat template. A completion that was cut at the length limit is scored as if it had ended there:
    the model has seen no other texts.
    """

    max_length: int | None = None

    def __init__(self, spec: ModelReward) -> None:
        self.title, self.batch_size = spec.title, spec.batch_size
        self.tokenizer: Any = tokenizer_of(spec.model, padding_side="right")
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        if self.tokenizer.eos_token is None:
            raise RewardError(
                f"reward model {self.title!r}: its tokenizer has no end token, so it cannot tell where an answer ends; "
                "give the tokenizer one, and train the model with it"
            )
        self.cut = 0

    def place(self) -> str:
        """Where it is, for `tells`."""
        raise NotImplementedError  # a device, or a server

    def scores_of(self, rows: list[list[int]]) -> list[float]:
        """The scores of `batch_size` tokenised texts or fewer."""
        raise NotImplementedError  # the model's own, by whichever way

    def tells(self, policys: Any) -> str:
        """One line for the start of a run: how texts reach it."""
        own = (
            "its own tokenizer and"
            if policys.get_vocab() != self.tokenizer.get_vocab()
            else "the policy's tokenizer,"
        )
        template = "a chat template" if self.tokenizer.chat_template else "no chat template"
        other = self.tokenizer.chat_template and policys.chat_template != self.tokenizer.chat_template
        return (
            f"reward model {self.title}: {own} {template}{' other than the policy' if other else ''}"
            f"{chr(39) + 's' if other else ''}; on {self.place()}, {self.batch_size} rows per forward"
        )

    def score(self, prompts: Sequence[Any], completions: Sequence[Any]) -> list[float]:
        rows = [
            self._ids(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)
        ]
        self.cut = 0
        if self.max_length is not None:
            self.cut = sum(len(row) > self.max_length for row in rows)
            rows = [row[-self.max_length :] for row in rows]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))  # less padding
        found = [0.0] * len(rows)
        parts = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        for part, values in zip(
            parts, self._in_turn([[rows[i] for i in part] for part in parts]), strict=True
        ):
            for i, value in zip(part, values, strict=True):
                found[i] = value
        return found

    def _in_turn(self, batches: list[list[list[int]]]) -> Iterable[list[float]]:
        return map(self.scores_of, batches)

    def _ids(self, prompt: Any, completion: Any) -> list[int]:
        if not isinstance(prompt, str) and not self.tokenizer.chat_template:
            raise RewardError(
                f"reward model {self.title!r}: prompts are conversations, and its tokenizer has no chat template; "
                "train it on conversations with a model that has one, or set data.chat false"
            )
        return whole_ids(self.tokenizer, prompt, completion)


class RewardScorer(TextScorer):
    """Every rank holds the whole model. Raises ModelFault for a folder that holds no reward model."""

    def __init__(self, spec: ModelReward, device: Any) -> None:
        with whole_weights_everywhere():
            self.model = load_reward_model(spec.model).requires_grad_(False).eval()
        super().__init__(spec)
        self.device = torch.device(spec.device if spec.device is not None else device)
        self.model.to(self.device)
        config = self.model.config.get_text_config()
        config.pad_token_id = self.tokenizer.pad_token_id
        self.max_length = (
            spec.max_length if spec.max_length is not None else vars(config).get("max_position_embeddings")
        )

    def place(self) -> str:
        return str(self.device)

    @torch.no_grad()
    def scores_of(self, rows: list[list[int]]) -> list[float]:
        batch = self.tokenizer.pad({"input_ids": rows}, return_tensors="pt").to(self.device)
        return self.model(**batch, use_cache=False).logits[:, 0].float().tolist()
