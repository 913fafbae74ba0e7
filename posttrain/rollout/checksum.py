"""A checksum a tensor, to find which weights did not arrive."""

from __future__ import annotations

import torch
from torch import Tensor

_CHUNK = 1 << 22  # elements; bounds the int64 copy to 32 MiB
_PERIOD = 65521  # largest 16-bit prime: a weight a position, so that exchanged elements show
_WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def dtype_name(dtype: torch.dtype) -> str:
    """`torch.bfloat16` -> "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def checksum(tensor: Tensor) -> int:
    """Position-weighted sum of the tensor's bit patterns modulo 2^64, as a signed integer.

    Equal for equal bits on every device; changes with any single element and with two exchanged ones.
    """
    flat = tensor.detach().contiguous().reshape(-1)
    words = flat.view(_WORDS[flat.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for start in range(0, words.numel(), _CHUNK):
        part = words[start : start + _CHUNK].to(torch.int64)
        weight = torch.arange(start, start + part.numel(), device=tensor.device) % _PERIOD + 1
        total += (part * weight).sum()
    return int(total)


def signature(tensor: Tensor) -> tuple[str, int]:
    """(dtype, checksum)."""
    return dtype_name(tensor.dtype), checksum(tensor)
