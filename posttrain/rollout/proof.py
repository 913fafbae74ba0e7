"""The proof after a sync: engine and trainer give the same tokens the same log-probs; if not, which tensor is it?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from posttrain.rollout.checksum import checksum


def largest_gap(engine: Sequence[Sequence[float]], trainer: Tensor) -> float:
    """max |log-prob of the engine - log-prob of the trainer|, in nats.

    trainer is (B, T); its row i counts up to len(engine[i]). NaN anywhere gives NaN.
    """
    ours = trainer.detach().double().cpu()
    gaps = [
        (torch.tensor(row, dtype=torch.float64) - ours[i, : len(row)]).abs() for i, row in enumerate(engine)
    ]
    return torch.cat(gaps).max().item() if any(gap.numel() for gap in gaps) else 0.0


def first_difference(
    trainer: Iterable[tuple[str, Tensor]], engine: Mapping[str, tuple[str, int]]
) -> tuple[str | None, int]:
    """The first of the trainer's tensors that the engine was not given as it is now, with the reason; and how many
    were compared. A tensor is compared in the engine's dtype: a float32 trainer may feed a bfloat16 engine.

    Consumes all of `trainer`, because gathering it may be a collective.
    """
    found, compared = None, 0
    for name, tensor in trainer:
        compared += 1
        if found is not None:
            continue
        if name not in engine:
            found = f"{name} (never received by the engine)"
            continue
        dtype, value = engine[name]
        if checksum(tensor.to(getattr(torch, dtype))) != value:
            found = f"{name} (other values than the trainer's)"
    return found, compared


def explain_gap(gap: float, limit: float, engine: str, version: int, found: str | None, compared: int) -> str:
    """The message that stops the run."""
    text = (
        f"after the sync of weight version {version} {engine} gives log-probs up to {gap:.3g} nat away from the "
        f"trainer's, limit {limit:g}."
    )
    if found is not None:
        return (
            f"{text} First tensor that differs: {found}. The engine samples from other weights than are trained: was "
            "a sync skipped, is the server used by another run, or does it serve another model?"
        )
    return (
        f"{text} All {compared} tensors arrived as they were sent, so the engine computes differently: another dtype, "
        "another attention kernel, an option the trainer does not have. If that is meant, raise "
        "rollout.vllm.proof_limit."
    )
