"""Weights that lie in shards, gathered without the processes that wrote them: ZeRO's and FSDP's checkpoints.

The gathered tensors get the names and the config of the model that the run's recipe describes; a tensor that the
shards lack, or have beyond it, is named.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

from posttrain.rollout.adapter_base import ModelFault
from posttrain.rollout.model_folder import check_adapter_file
from posttrain.trainers.seam.whole_checkpoint import lacking

_ADAPTER = "default"
_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.")
"""What torch.compile and FSDP put into names."""


def zero_weights(checkpoint: Path) -> dict[str, Tensor]:
    """Weights of a DeepSpeed checkpoint (ZeRO-1, 2 and 3), in float32. Needs the `deepspeed` extra."""
    try:
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
    except ImportError:
        raise ModelFault(
            f"{checkpoint} holds shards of DeepSpeed, which is not installed: pip install -e '.[deepspeed]'"
        ) from None
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it reads, a line a file
            gathered: Any = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint))
    except (ValueError, FileNotFoundError, EOFError, RuntimeError) as error:
        raise ModelFault(f"{checkpoint}: its shards cannot be gathered: {_first_line(error)}") from None
    return dict(gathered)


def fsdp_weights(shards: Path, work: Path) -> dict[str, Tensor]:
    """Weights of a torch.distributed.checkpoint as accelerate writes it; `work` is a folder for one file."""
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    file = work / "gathered.pt"
    try:
        dcp_to_torch_save(shards, file)
    except (CheckpointException, FileNotFoundError, EOFError, RuntimeError) as error:
        raise ModelFault(f"{shards}: its shards cannot be gathered: {_first_line(error)}") from None
    return torch.load(file, map_location="cpu", weights_only=True, mmap=True)["model"]


def write_gathered(
    model: Any,
    lora: LoraConfig | None,
    weights: Mapping[str, Tensor],
    out: Path,
    *,
    dtype: torch.dtype | None,
) -> None:
    """Writes a model's folder, or with `lora` an adapter's, of gathered weights.

    model  what the run began with; its weights are replaced, or with `lora` are the adapter's base
    dtype  of what is written; None: as the shards have it
    """
    plain = {_plain_name(name): tensor for name, tensor in weights.items()}
    if lora is None:
        _write_whole(model, plain, out, dtype)
    else:
        _write_adapter(model, lora, plain, out, dtype)


def _write_whole(model: Any, weights: dict[str, Tensor], out: Path, dtype: torch.dtype | None) -> None:
    try:
        found = model.load_state_dict(weights, strict=False, assign=True)  # in the shards' own precision
    except RuntimeError as error:
        raise ModelFault(f"the shards are of another model: {_first_mismatch(error)}") from None
    missing = lacking(model, found.missing_keys)
    if missing or found.unexpected_keys:
        what = f"lack {missing[0]}" if missing else f"have {found.unexpected_keys[0]}, which the model lacks"
        raise ModelFault(f"the shards {what}; the run's recipe describes another {type(model).__name__}")
    model.tie_weights()
    model.to(dtype or _widest(weights))
    check_finite(model)
    model.save_pretrained(str(out))


def _write_adapter(
    model: Any, lora: LoraConfig, weights: dict[str, Tensor], out: Path, dtype: torch.dtype | None
) -> None:
    adapted: Any = get_peft_model(model, lora)
    if any(
        f".{_ADAPTER}" in name for name in weights
    ):  # as modules name them; FSDP's shards have peft's names
        weights = get_peft_model_state_dict(adapted, state_dict=weights)
    kept = {
        name: (tensor if dtype is None else tensor.to(dtype)).contiguous().clone()
        for name, tensor in weights.items()
    }
    for name, tensor in kept.items():
        if not bool(tensor.isfinite().all()):
            raise ModelFault(f"{name} is not finite; nothing was written")
    out.mkdir(parents=True, exist_ok=True)
    save_file(kept, str(out / "adapter_model.safetensors"), metadata={"format": "pt"})
    config = adapted.peft_config[_ADAPTER]
    config.inference_mode = True
    config.save_pretrained(str(out))
    check_adapter_file(adapted, out)


def check_finite(model: nn.Module) -> None:
    """Raises ModelFault at the first weight that is not: float16 ends at 65504."""
    for name, tensor in model.named_parameters():
        if not bool(tensor.isfinite().all()):
            raise ModelFault(f"{name} is not finite in {tensor.dtype}; nothing was written")


def _widest(weights: Mapping[str, Tensor]) -> torch.dtype:
    kinds = {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()}
    return torch.float32 if torch.float32 in kinds or len(kinds) != 1 else kinds.pop()


def _plain_name(name: str) -> str:
    for part in _WRAPPERS:
        name = name.replace(part, "")
    return name


def _first_mismatch(error: Exception) -> str:
    return next(
        (line.strip() for line in str(error).splitlines() if "size mismatch" in line), _first_line(error)
    )


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
