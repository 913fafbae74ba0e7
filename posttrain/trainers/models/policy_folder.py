"""A policy as a folder on disk: a whole model, or an adapter beside a base that lies elsewhere.

Iterative methods pass policies from one iteration to the next through such folders, and only through them:
what is trained, sampled from and compared with is then the same weights by construction, and never a hub's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate.utils import is_peft_model
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerBase

from posttrain.rollout.adapter_base import base_of, holds_adapter
from posttrain.rollout.model_folder import load_adapter, load_dense, load_whole

__all__ = ["ADAPTER", "holds_adapter", "load_adapter_into", "load_dense", "load_policy", "save_policy"]

ADAPTER = "default"


def save_policy(model: Any, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes a model, or of a PEFT model the adapter being trained, without copies kept as references."""
    if is_peft_model(model):
        model.save_pretrained(str(folder), selected_adapters=[ADAPTER])
    else:
        model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))


def load_policy(
    folder: str | Path,
    *,
    base: str | Path | None = None,
    trainable: bool = False,
    dtype: torch.dtype | None = None,
) -> Any:
    """The policy in `folder`, in `dtype` (None: as saved).

    base  where an adapter's base model lies; None: where its config says
    """
    if not holds_adapter(folder):
        return load_whole(folder, dtype=dtype or "auto")
    model = load_dense(base if base is not None else base_of(folder), dtype=dtype or "auto")
    # float32 adapters on any base: what peft trains, so that a reload changes no bit
    return load_adapter(model, folder, is_trainable=trainable)


def load_adapter_into(model: Any, folder: str | Path, name: str) -> None:
    """Overwrites the weights of adapter `name` of a PEFT model with those saved in `folder`."""
    from peft import set_peft_model_state_dict

    state = load_file(str(Path(folder) / "adapter_model.safetensors"))
    result = set_peft_model_state_dict(model, state, adapter_name=name)
    if result.unexpected_keys:
        raise ValueError(f"{folder}: not an adapter of this model: {result.unexpected_keys[:3]}")
