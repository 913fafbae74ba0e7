"""The models of `posttrain eval drift`: what may stand beside what, and their distributions over given tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from posttrain.evaluation.engine_bridge import EvaluationEngine, positions, weights_hash
from posttrain.evaluation.speaker import Message
from posttrain.rollout.model_folder import load_dense, tokenizer_of

_PROBE = "The 3 cats\n  cost $1,200.50 -- na\u00efve, \u6570!\n- a bullet\n"


@dataclass(frozen=True)
class ChatModel:
    """A causal model that this process holds whole, with its tokenizer, ready to answer."""

    path: str
    weights: str | None
    model: Any
    tokenizer: PreTrainedTokenizerBase
    generator: EvaluationEngine

    @property
    def named(self) -> dict[str, Any]:
        return {"path": self.path, "weights": self.weights}

    @property
    def head(self) -> int:
        """Rows of the output head: the tokenizer's ids, and what they are padded to."""
        return int(self.model.get_output_embeddings().weight.shape[0])

    @property
    def max_positions(self) -> int | None:
        return positions(self.model)

    def ids_of(self, messages: Sequence[Message], addition: str | None = None) -> list[int]:
        """The history as the chat template writes it, up to where the answer begins.

        addition  put at the end of the last message. Raises ValueError where the template refuses the conversation.
        """
        said = [dict(message) for message in messages]
        if addition is not None:
            said[-1]["content"] += f"\n\n{addition}"
        try:
            text = self.tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            hint = "; goal_in: user needs no system message" if said[0]["role"] == "system" else ""
            raise ValueError(
                f"{self.path}: the chat template refuses the conversation: {error}{hint}"
            ) from None
        assert isinstance(text, str)  # not tokenized
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def chat_tokenizer(path: str, role: str) -> PreTrainedTokenizerBase:
    """The tokenizer of the model at `path`; ValueError where it has no chat template.

    role  what the model is here, for the message
    """
    try:
        tokenizer = tokenizer_of(path)
    except OSError as error:
        absent = "" if Path(path).exists() else f"there is no folder {path}, and from the hub: "
        raise ValueError(f"{role}: {absent}{str(error).strip().partition(chr(10))[0]}") from None
    if tokenizer.chat_template is None:
        raise ValueError(
            f"{role}: {path} has no chat template, so it is no model to converse with (a base model?); name an "
            "instruction-tuned one, or save the tokenizer with the template it was trained with"
        )
    return tokenizer


def load_chat_model(path: str, tokenizer: PreTrainedTokenizerBase, *, dtype: str, device: str) -> ChatModel:
    """Raises ModelFault or OSError where the folder is not whole, ValueError where the model is not causal."""
    model: Any = load_dense(path, dtype=dtype)
    if model.config.to_dict().get("is_causal") is False:
        raise ValueError(f"{path} looks both ways; drift is measured on models that read from left to right")
    model.to(torch.device(device)).eval()
    return ChatModel(path, weights_hash(path), model, tokenizer, EvaluationEngine.around(model, tokenizer))


def tokenizer_fault(tested: PreTrainedTokenizerBase, reference: PreTrainedTokenizerBase) -> str | None:
    """Why two tokenizers cannot be compared token by token, where they cannot. Special roles (padding) may differ."""
    ours, theirs = tested.get_vocab(), reference.get_vocab()
    if ours != theirs:
        differing = sorted(ours.items() ^ theirs.items())
        token, number = differing[0]
        whose = "the model's" if ours.get(token) == number else "the reference's"
        return (
            f"the tokenizers differ ({len(ours):,} and {len(theirs):,} tokens; {token!r} is {number} only in {whose}): "
            "a KL over the vocabulary needs one tokenizer; take a reference of the same family, or the model itself "
            "with --restate-goal"
        )
    found = [one(_PROBE, add_special_tokens=False)["input_ids"] for one in (tested, reference)]
    if found[0] != found[1]:
        return "the tokenizers have one vocabulary but split text differently; take a reference of the same family"
    return None


def head_fault(tested: ChatModel, reference: ChatModel) -> str | None:
    """Why a head has no row for each token, where it has not."""
    needed = len(tested.tokenizer)
    for one in (tested, reference):
        if one.head < needed:
            return f"{one.path} scores {one.head:,} ids, the tokenizer has {needed:,}: they do not belong together"
    return None
