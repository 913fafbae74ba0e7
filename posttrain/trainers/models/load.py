"""From a recipe's `model` section to a model and its tokenizer: loaded from a path or hub, or made from scratch."""

from __future__ import annotations

import logging
import string
from typing import Any

import torch
from accelerate import PartialState
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from posttrain.data.scratch_tokenizer import ROLES, by_characters
from posttrain.rollout.adapter_base import base_of, holds_adapter
from posttrain.rollout.model_folder import load_dense, tokenizer_of

logger = logging.getLogger(__name__)


def character_tokenizer(alphabet: str = string.printable[:95] + "\n") -> PreTrainedTokenizerFast:
    """One token a character of `alphabet`, and <pad>, <eos>, <bos>, <unk>, <mask>."""
    return PreTrainedTokenizerFast(
        tokenizer_object=by_characters(alphabet),
        **ROLES,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def scratch_llama(
    tokenizer: PreTrainedTokenizerFast,
    *,
    hidden_size: int = 128,
    layers: int = 2,
    heads: int = 4,
    intermediate_size: int | None = None,
    max_positions: int = 128,
    seed: int = 0,
) -> LlamaForCausalLM:
    """A Llama-shaped model with random float32 weights drawn from `seed`, for a `character_tokenizer`.

    The process's own random state is left alone."""
    ids = tokenizer.get_vocab()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=intermediate_size or 3 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=max_positions,
        pad_token_id=ids["<pad>"],
        eos_token_id=ids["<eos>"],
        bos_token_id=ids["<bos>"],
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def load_pretrained(
    path: str,
    *,
    tokenizer_path: str | None = None,
    dtype: str = "auto",
    **options: Any,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model and its tokenizer, padded on the left, from a folder or the hub; of an adapter's folder
    the base model with the adapter merged in. Raises ModelFault where the folder is not whole."""
    tokenizer = tokenizer_of(
        tokenizer_path or path,
        padding_side="left",
        trust_remote_code=options.get("trust_remote_code", False),
        revision=None if tokenizer_path else options.get("revision"),
    )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if holds_adapter(path) and PartialState().is_main_process:
        logger.warning(
            "%s is an adapter: the run starts from its base, %s, with it merged in", path, base_of(path)
        )
    return load_dense(path, dtype=dtype, **options), tokenizer
