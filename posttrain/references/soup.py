"""Model soups: the weighted average of the weights of models that share their start. Wortsman et al. 2022,
https://arxiv.org/abs/2203.05482; as the KL reference of RLHF: SALSA, https://arxiv.org/abs/2411.01798.

Weights are averaged, not probabilities: for a tabular policy the soup is the normalised geometric mixture,
for a network it is only near it, and only when the models lie in one basin (same start, same data, another
seed).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

StateDict = Mapping[str, Tensor]


def average(state_dicts: Sequence[StateDict], weights: Sequence[float]) -> dict[str, Tensor]:
    """The convex combination sum_i w_i * theta_i of dense weights (SALSA, theta_soup).

    Floating tensors are summed in float64 and rounded once, to the dtype of the first model; a model of weight 0
    takes no part, so weights (1, 0) give back the first one bit for bit. Integer and boolean tensors must be equal.
    Tensors that share memory in the first model (tied embeddings) are averaged once and stay shared.

    Raises ValueError, naming the tensor, on different keys or shapes (another architecture or vocabulary), on
    adapters that are not merged, on quantised tensors, and on weights that do not match or do not sum to 1.
    """
    _check_weights(weights, len(state_dicts))
    first = state_dicts[0]
    for index, other in enumerate(state_dicts):
        _check_compatible(first, other, index)
    soup: dict[str, Tensor] = {}
    shared: dict[tuple[object, ...], str] = {}
    for name, tensor in first.items():
        identity = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.data_ptr() != 0 and identity in shared:  # 0: empty or not yet materialised
            _check_tie(state_dicts, shared[identity], name)
            soup[name] = soup[shared[identity]]
            continue
        shared[identity] = name
        soup[name] = _average_tensor(name, [state[name] for state in state_dicts], weights)
    return soup


def _average_tensor(name: str, tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    first = tensors[0]
    if not first.is_floating_point():
        for index, tensor in enumerate(tensors):
            if not torch.equal(tensor.to(first.device), first):
                raise ValueError(
                    f"soup: {name!r} holds {first.dtype} values that differ between model 0 and model "
                    f"{index}; counts, tables and quantised weights cannot be averaged"
                )
        return first.clone()
    terms = [
        weight * tensor.to(device=first.device, dtype=torch.float64)
        for tensor, weight in zip(tensors, weights, strict=True)
        if weight != 0.0
    ]
    total = terms[0]  # not zeros to add to: 0.0 + -0.0 is 0.0
    for term in terms[1:]:
        total += term
    return total.to(first.dtype)


UNRELATED = 1.0
"""A `distance` from which on models hardly share their start: two independent draws lie about sqrt(2) apart, two
fine-tunings of one model at a small fraction of 1."""


def distance(first: StateDict, other: StateDict) -> float:
    """|theta_1 - theta_2| over the larger of |theta_1| and |theta_2|, of all floating matrices together. No unit.

    Vectors are left out: a norm's weights lie near 1 in every model and would hide how the rest differs.
    """
    apart, sizes = 0.0, [0.0, 0.0]
    for name, tensor in first.items():
        if tensor.is_floating_point() and tensor.dim() > 1:
            one, two = tensor.double(), other[name].to(tensor.device).double()
            apart += float((one - two).square().sum())
            sizes[0] += float(one.square().sum())
            sizes[1] += float(two.square().sum())
    return math.sqrt(apart / max(sizes)) if max(sizes) > 0 else 0.0


def _check_weights(weights: Sequence[float], num_models: int) -> None:
    if num_models == 0:
        raise ValueError("soup: no models to average")
    if len(weights) != num_models:
        raise ValueError(f"soup: {num_models} models but {len(weights)} weights; give one weight a model")
    if any(not math.isfinite(w) or w < 0 for w in weights):
        raise ValueError(f"soup: weights {list(weights)} must be finite and not negative")
    if abs(math.fsum(weights) - 1.0) > 1e-6:
        raise ValueError(f"soup: weights {list(weights)} sum to {math.fsum(weights):.6g}, not to 1")


def _check_compatible(first: StateDict, other: StateDict, index: int) -> None:
    adapters = [name for name in other if "lora_" in name or ".base_layer." in name]
    if adapters:
        raise ValueError(
            f"soup: model {index} holds an unmerged adapter ({adapters[0]!r}); A and B averaged apart are "
            "not the average of B·A. Merge the adapter into dense weights first"
        )
    missing, added = sorted(first.keys() - other.keys()), sorted(other.keys() - first.keys())
    if missing or added:
        raise ValueError(
            f"soup: model {index} is of another architecture than model 0: "
            f"it lacks {missing[:3] or 'nothing'} and adds {added[:3] or 'nothing'}"
        )
    for name, tensor in first.items():
        if other[name].shape != tensor.shape:
            hint = " (another vocabulary?)" if "embed" in name or "lm_head" in name or "wte" in name else ""
            raise ValueError(
                f"soup: {name!r} is {tuple(tensor.shape)} in model 0 but {tuple(other[name].shape)} in model "
                f"{index}{hint}"
            )
        if other[name].is_floating_point() != tensor.is_floating_point():
            raise ValueError(
                f"soup: {name!r} is {tensor.dtype} in model 0 but {other[name].dtype} in model {index}; "
                "quantised weights cannot be averaged"
            )


def _check_tie(state_dicts: Sequence[StateDict], source: str, name: str) -> None:
    """Tied in the first model: must be equal in all, or the soup would drop one model's difference."""
    for index, state in enumerate(state_dicts):
        if not torch.equal(state[source], state[name]):
            raise ValueError(
                f"soup: {name!r} is tied to {source!r} in model 0 but differs from it in model {index}"
            )
