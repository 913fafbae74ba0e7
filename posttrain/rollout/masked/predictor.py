"""The model side of masked diffusion: any transformers model that predicts hidden tokens from both sides.

    decoders   Llama, Qwen2, ... with `config.is_causal = False`, set before the model is made
    encoders   BERT-like models with a masked-language head
    remote     LLaDA, Dream: code that comes with the checkpoint, run only when the caller says trust_remote_code

A causal mask would not crash anything; the model would merely learn nothing sensible. So a model is probed before
it is used: changing the last token must move the logits of the first.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.integrations.fsdp import is_fsdp_enabled

from posttrain.ops.masked_elbo import LogitsFn
from posttrain.rollout.adapter_base import base_of, holds_adapter
from posttrain.rollout.masked.sampler_options import cache_fault, untrusted
from posttrain.rollout.model_folder import load_whole, merged

SHIFTED = frozenset({"Dream"})
"""Model types whose position i-1 predicts token i, since they grew out of a causal checkpoint."""
PAIRWISE_MASK = frozenset({"Dream"})
"""Model types that take the attention mask as (B, 1, S, S) booleans."""


@dataclass(frozen=True)
class MaskPredictor:
    """A model with what one must know to read its logits.

    logit_shift      position i-1 predicts token i
    pairwise_mask    the attention mask is wanted as (B, 1, S, S) booleans
    takes_positions  the forward takes position_ids
    keeps_columns    the forward takes logits_to_keep, the columns whose logits are wanted
    uncached         why keys and values cannot be kept between passes; None where they can
    """

    model: Any
    mask_id: int
    logit_shift: bool = False
    pairwise_mask: bool = False
    takes_positions: bool = False
    keeps_columns: bool = False
    uncached: str | None = "nothing is known of the model"

    @classmethod
    def of(cls, model: PreTrainedModel, mask_id: int) -> MaskPredictor:
        """With the properties that stand in the model's config (`logit_shift`) or follow from its class."""
        config, arguments = model.config, inspect.signature(type(model).forward).parameters
        pairwise = config.model_type in PAIRWISE_MASK
        positions, columns = (name in arguments for name in ("position_ids", "logits_to_keep"))
        uncached = _uncached(model, plain=positions and columns and not pairwise)
        return cls(model, mask_id, has_logit_shift(config), pairwise, positions, columns, uncached)

    def with_model(self, model: nn.Module) -> MaskPredictor:
        """The same reading of another model of this kind: wrapped for training, or a reference."""
        return replace(self, model=model)

    def logits(self, ids: Tensor, present: Tensor, columns: slice | None = None) -> Tensor:
        """Logits whose row i predicts the token at i. ids, present (B, S): 0 = padding. (B, S, V).

        columns  only these are wanted, where the model can leave the others out of its head: (B, C, V)
        """
        # Positions count from the first real token: RoPE does not mind, learned positions do.
        arguments: dict[str, Any] = {}
        if self.takes_positions:
            arguments["position_ids"] = (present.long().cumsum(1) - 1).clamp(min=0)
        mask = present
        if self.pairwise_mask:
            # A padding row attends to itself: a softmax over nothing would be NaN.
            seen = present.bool()
            diagonal = torch.eye(ids.shape[1], dtype=torch.bool, device=ids.device)
            mask = (seen.unsqueeze(1) & seen.unsqueeze(2) | diagonal).unsqueeze(1)
        places = torch.arange(ids.shape[1], device=ids.device)
        if self.logit_shift:  # column 0 has nothing before it, and answers for itself
            places = (places - 1).clamp(min=0)
        if columns is not None:
            places = places[columns]
        if self.keeps_columns and columns is not None:
            arguments["logits_to_keep"] = places
            return self.model(input_ids=ids, attention_mask=mask, **arguments).logits
        logits = self.model(input_ids=ids, attention_mask=mask, **arguments).logits
        return logits if columns is None and not self.logit_shift else logits[:, places]

    def logits_fn(self, present: Tensor, columns: slice | None = None) -> LogitsFn:
        """`logits` with the padding of one batch."""
        return lambda ids: self.logits(ids, present, columns)


def _uncached(model: PreTrainedModel, *, plain: bool) -> str | None:
    """Why this model's keys and values cannot be kept between the passes over a canvas."""
    own_code = not type(model).__module__.startswith("transformers.")
    kinds = set(vars(model.config).get("layer_types") or ()) - {"full_attention"}
    if kinds:
        return f"it has layers of {', '.join(sorted(kinds))}"
    if not plain:
        return f"{type(model).__name__} takes no positions, or no choice of columns"
    return cache_fault(type(model).__name__, own_code)


def has_logit_shift(config: PretrainedConfig) -> bool:
    stored = config.to_dict().get("logit_shift")
    return config.model_type in SHIFTED if stored is None else bool(stored)


def mask_id_of(tokenizer: PreTrainedTokenizerBase, mask_token: str | None = None) -> int:
    """The tokenizer's mask id; `mask_token` names the token where the tokenizer does not say."""
    if mask_token is not None:
        if mask_token not in tokenizer.get_vocab():
            raise ValueError(f"mask_token {mask_token!r} is not in the tokenizer's vocabulary")
        tokenizer.mask_token = mask_token
    mask_id = tokenizer.mask_token_id
    if not isinstance(mask_id, int):
        raise ValueError(
            f"the tokenizer of {tokenizer.name_or_path or 'this model'} names no mask token; "
            "say which of its tokens it is with mask_token"
        )
    return mask_id


# Loading


def load_mask_model(
    path: str,
    *,
    dtype: str | torch.dtype = "auto",
    trust_remote_code: bool = False,
    logit_shift: bool | None = None,
    **options: Any,
) -> PreTrainedModel:
    """A bidirectional model from a folder or the hub, its properties written into its config; of an adapter's
    folder the base with the adapter merged in.

    logit_shift  None: what the checkpoint's config says, else by its type
    Raises ValueError when the checkpoint brings its own code and trust_remote_code is false.
    """
    if holds_adapter(path):
        base = load_mask_model(
            base_of(path),
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            logit_shift=logit_shift,
            **options,
        )
        return with_generation_config(merged(base, path))
    remote = own_code(path, trust_remote_code=trust_remote_code, revision=options.get("revision"))
    revision = {"revision": options["revision"]} if options.get("revision") else {}
    config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code, **revision)
    config.is_causal = False
    config.use_cache = False
    config.logit_shift = has_logit_shift(config) if logit_shift is None else logit_shift
    model_class = _model_class(path, config, remote, options.get("revision"))
    model = load_whole(path, model_class, config=config, dtype=dtype, **options)
    return with_generation_config(model)


def own_code(path: str, *, trust_remote_code: bool, revision: str | None = None) -> dict[str, str]:
    """The classes a checkpoint brings with it, {} where it brings none; ValueError unless they may be run."""
    if holds_adapter(path):
        return own_code(base_of(path), trust_remote_code=trust_remote_code)
    raw, _ = PretrainedConfig.get_config_dict(path, **({"revision": revision} if revision else {}))
    remote = raw.get("auto_map", {})
    if remote and not trust_remote_code:
        raise ValueError(untrusted(path, remote))
    return remote


def _model_class(path: str, config: PretrainedConfig, remote: dict[str, str], revision: str | None) -> Any:
    if remote:
        # Dream and LLaDA register AutoModel, which is the whole model, head included.
        name = (
            remote.get("AutoModel")
            or remote.get("AutoModelForCausalLM")
            or remote.get("AutoModelForMaskedLM")
        )
        if name is None:
            raise ValueError(f"{path}: its code registers no AutoModel, only {', '.join(sorted(remote))}")
        return adapt_to_transformers_5(get_class_from_dynamic_module(name, path, revision=revision))
    architecture = (config.architectures or [""])[0]
    return AutoModelForMaskedLM if architecture.endswith("MaskedLM") else AutoModelForCausalLM


def adapt_to_transformers_5(cls: Any) -> Any:
    """Remote model code written for transformers 4, made to load under transformers 5.

    Three things moved: `tie_weights` is called with arguments, `all_tied_weights_keys` is expected even where
    `post_init` was never called, and `_tied_weights_keys` is a mapping (a list says nothing when nothing is tied).
    """
    own = vars(cls).get("tie_weights")
    if own is not None and "missing_keys" not in inspect.signature(own).parameters:
        cls.tie_weights = lambda self, *_, **__: own(self)
    if isinstance(cls._tied_weights_keys, list | tuple):
        cls._tied_weights_keys = None
    if not hasattr(cls, "all_tied_weights_keys"):
        cls.all_tied_weights_keys = {}
    return cls


def with_generation_config(model: PreTrainedModel) -> PreTrainedModel:
    """An encoder has none; the trainer reads end tokens from there."""
    if vars(model).get("generation_config") is None:
        model.generation_config = GenerationConfig.from_model_config(model.config)
    return model


def scratch_mask_model(
    tokenizer: PreTrainedTokenizerBase,
    *,
    hidden_size: int = 128,
    layers: int = 2,
    heads: int = 4,
    intermediate_size: int | None = None,
    max_positions: int = 128,
    seed: int = 0,
) -> LlamaForCausalLM:
    """A small bidirectional Llama with random float32 weights drawn from `seed`, the process's RNG left alone."""
    mask_id_of(tokenizer)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=intermediate_size or 3 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=max_positions,
        tie_word_embeddings=False,
        use_cache=False,
    )
    for name in ("pad_token_id", "eos_token_id", "bos_token_id"):
        setattr(config, name, getattr(tokenizer, name))
    config.is_causal = False
    config.logit_shift = False
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


# Probing


@torch.no_grad()
def check_mask_predictor(predictor: MaskPredictor) -> Literal["hidden", "attended"]:
    """Raises ValueError unless the model attends in both directions; returns what it does with padding.

    Costs four forward passes on eight tokens. "attended": the model ignores the attention mask, so that a row's
    log-probs depend on how far it is padded.
    """
    model = predictor.model
    device = next(model.parameters()).device
    vocabulary = model.get_input_embeddings().num_embeddings
    ids = torch.arange(8, device=device).unsqueeze(0) % min(8, vocabulary)
    present = torch.ones_like(ids)
    with evaluating(model):
        plain = predictor.logits(ids, present)
        moved = predictor.logits(_replaced(ids, -1, vocabulary), present)
        if torch.equal(plain[:, 0], moved[:, 0]):
            raise ValueError(
                f"{type(model).__name__} attends to the left only: its first position does not see the last token. "
                "Load it with posttrain.rollout.masked.predictor.load_mask_model, or set config.is_causal = False "
                "before the model is made; it cannot be switched afterwards."
            )
        present[:, 0] = 0
        padded = predictor.logits(ids, present)[:, 2:]
        other = predictor.logits(_replaced(ids, 0, vocabulary), present)[:, 2:]
    return "hidden" if torch.allclose(padded, other, rtol=1e-3, atol=1e-3) else "attended"


def whole_on_this_rank() -> bool:
    """Whether a model that has just been loaded has its weights here. Under ZeRO-3, and under FSDP with loading on
    one rank only, it has none until it is prepared for training; it is then probed in its first forward pass."""
    return not (is_deepspeed_zero3_enabled() or is_fsdp_enabled())


def _replaced(ids: Tensor, column: int, vocabulary: int) -> Tensor:
    ids = ids.clone()
    ids[:, column] = (ids[:, column] + 1) % vocabulary
    return ids


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout off and no graph-saving tricks while inside; then every module as it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
