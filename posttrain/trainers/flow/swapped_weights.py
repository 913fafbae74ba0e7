"""Another model in the place of the policy for a while: only trained weights differ, so only they are kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


class SwappedWeights:
    """A frozen model as its difference to the policy: of an adapter the adapter alone, else all weights."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = dict(tensors)

    @classmethod
    def of(cls, model: Any) -> SwappedWeights:
        """The model as it is now."""
        return cls({name: parameter.detach().clone() for name, parameter in trained(model)})

    @classmethod
    def read(cls, file: Path) -> SwappedWeights:
        """What `write` wrote; it goes to the model's device with the first swap."""
        return cls(load_file(file))

    def write(self, file: Path) -> None:
        save_file({name: tensor.contiguous() for name, tensor in self.tensors.items()}, file)

    @contextmanager
    def inside(self, model: Any) -> Iterator[Any]:
        """`model` with these weights, without gradient or dropout. The policy's come back as they were, to the bit; a
        forward pass of the policy whose backward is still to come must not lie before it."""
        mine = dict(trained(model))
        if mine.keys() != self.tensors.keys():
            odd = sorted(mine.keys() ^ self.tensors.keys())
            raise ValueError(f"the reference and the policy train other weights: {', '.join(odd[:3])}")
        self._exchange(mine)
        was_training = model.training
        model.eval()
        try:
            with torch.no_grad():
                yield model
        finally:
            model.train(was_training)
            self._exchange(mine)

    def _exchange(self, mine: Mapping[str, Any]) -> None:
        for name, parameter in mine.items():
            theirs = self.tensors[name].to(parameter.device)
            self.tensors[name], parameter.data = parameter.data, theirs
        # autocast keeps the weights it has cast by the parameter they are of
        torch.clear_autocast_cache()


def trained(model: Any) -> list[tuple[str, Any]]:
    """Names and parameters that are trained; what is shared counts once."""
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
