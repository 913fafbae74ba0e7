"""Named tensors as chunks of bytes, the form in which both transfer backends move them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from posttrain.rollout.base import NamedTensors
from posttrain.rollout.checksum import dtype_name

CHUNK_BYTES = 1 << 28


@dataclass(frozen=True)
class Chunk:
    """Some whole tensors behind one another. `data` is uint8, one-dimensional."""

    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]
    data: Tensor

    def describe(self) -> dict[str, list]:
        """What the receiver must know before the bytes arrive."""
        return {"names": self.names, "dtype_names": self.dtype_names, "shapes": self.shapes}


def pack(
    named_tensors: NamedTensors, device: torch.device, limit_bytes: int = CHUNK_BYTES
) -> Iterator[Chunk]:
    """Chunks that end with the tensor that takes them past `limit_bytes`. Tensors are copied at once: a gathered
    one is gone when the next is asked for."""
    names: list[str] = []
    dtypes: list[str] = []
    shapes: list[list[int]] = []
    parts: list[Tensor] = []
    size = 0
    for name, tensor in named_tensors:
        flat = tensor.detach().to(device).contiguous().reshape(-1).view(torch.uint8)
        parts.append(flat.clone() if flat.data_ptr() == tensor.data_ptr() else flat)
        names.append(name)
        dtypes.append(dtype_name(tensor.dtype))
        shapes.append(list(tensor.shape))
        size += flat.numel()
        if size > limit_bytes:
            yield Chunk(names, dtypes, shapes, torch.cat(parts))
            names, dtypes, shapes, parts, size = [], [], [], [], 0
    if parts:
        yield Chunk(names, dtypes, shapes, torch.cat(parts))


def sizes_of(dtype_names: list[str], shapes: list[list[int]]) -> list[int]:
    """Bytes of each tensor."""
    return [
        torch.Size(shape).numel() * getattr(torch, name).itemsize
        for name, shape in zip(dtype_names, shapes, strict=True)
    ]


def unpack(
    data: Tensor, names: list[str], dtype_names: list[str], shapes: list[list[int]]
) -> list[tuple[str, Tensor]]:
    """The named tensors of a chunk, copied out so that each is aligned for its dtype."""
    parts = data.split(sizes_of(dtype_names, shapes))
    return [
        (name, part.clone().view(getattr(torch, dtype)).view(shape))
        for name, dtype, shape, part in zip(names, dtype_names, shapes, parts, strict=True)
    ]
