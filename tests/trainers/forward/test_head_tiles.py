"""Candidates out of the fused head's tiles, against the whole logits."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from posttrain.ops.logprobs import top_candidates
from posttrain.trainers.forward.head_tiles import FOLD_ARGUMENTS, TileCandidates, reading_tiles
from posttrain.trainers.seam.trl_seam import fused_head

VOCABULARY, HIDDEN, K = 40, 6, 5


def passed(scored: Tensor, compact: bool, dtype: torch.dtype = torch.float32, **head: float):
    """(hidden, weight, bias, targets, candidates) of one pass of the fused head over random numbers."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(len(scored), HIDDEN, generator=generator, dtype=dtype)
    weight = torch.randn(VOCABULARY, HIDDEN, generator=generator, dtype=dtype)
    bias = torch.randn(VOCABULARY, generator=generator, dtype=dtype)
    targets = torch.randint(0, VOCABULARY, (len(scored),), generator=generator)
    likely = (hidden @ weight.T + bias).argmax(dim=1)
    targets[4:6] = likely[4:6]  # the others rank low
    rows = scored if compact else torch.ones_like(scored)
    with reading_tiles(scored, K) as candidates:
        fused_head.ChunkedLogProbFunction.apply(
            *(hidden[rows], weight, bias, targets[rows]),
            *(head.get("temperature", 1.0), head.get("chunk", VOCABULARY)),
            *(head.get("softcap"), head.get("scale", 1.0), ("entropy",)),
        )
    return hidden, weight, bias, targets, candidates


def as_on_a_gpu(monkeypatch) -> None:
    """The Triton branch, its kernels played by the functions that stand in for them on a CPU."""

    class Kernel:
        def __init__(self, fold) -> None:
            self.fold = fold

        def __getitem__(self, grid):
            return self.fold

    monkeypatch.setattr(fused_head, "_use_triton", lambda device: True)
    monkeypatch.setattr(fused_head, "_forward_kernel", Kernel(fused_head._forward_tile))
    monkeypatch.setattr(fused_head, "_backward_kernel", Kernel(fused_head._backward_tile))
    monkeypatch.setattr(fused_head, "triton", SimpleNamespace(cdiv=lambda a, b: -(-a // b)), raising=False)


SCORED = torch.tensor([False, True, True, False, True, True, True, False, False, True, False])


@pytest.mark.parametrize("compact", [False, True], ids=["cpu", "compact"])
@pytest.mark.parametrize(
    "head",
    [{}, {"chunk": 16}, {"chunk": 3}, {"temperature": 0.6, "softcap": 4.0, "scale": 0.5, "chunk": 16}],
    ids=["one_tile", "several", "narrower_than_k", "softcap"],
)
def test_the_tiles_hold_the_best_candidates(head, compact, monkeypatch):
    if compact:
        as_on_a_gpu(monkeypatch)
    monkeypatch.setattr(fused_head, "TOKEN_CHUNK_SIZE", 4)  # positions in several tiles as well
    hidden, weight, bias, targets, candidates = passed(SCORED, compact, **head)
    logits = (hidden @ weight.T + bias) * head.get("scale", 1.0)
    if "softcap" in head:
        logits = head["softcap"] * torch.tanh(logits / head["softcap"])
    logits = logits / head.get("temperature", 1.0)

    ids, values = candidates.result()
    expected = top_candidates(logits, targets, K)
    assert torch.equal(ids[SCORED], expected[0][SCORED])
    assert_close(values[SCORED], expected[1][SCORED])
    assert (values[~SCORED] == 0).all()
    assert (ids[~SCORED] == 0).all()
    ranks = (logits > logits.gather(1, targets[:, None])).sum(1)[SCORED]
    assert (ranks >= K).any()  # a sampled id below the candidates is among the cases
    assert (ranks < K).any()


def test_bfloat16_candidates_are_of_the_logits_the_logprobs_have():
    hidden, weight, bias, targets, candidates = passed(SCORED, compact=False, dtype=torch.bfloat16)
    logits = hidden @ weight.T + bias
    values = candidates.result()[1][SCORED]
    assert values.dtype == torch.float32
    assert_close(values, top_candidates(logits, targets, K)[1][SCORED].float(), rtol=0.01, atol=0.02)


def test_the_fold_is_put_back_and_is_called_as_upstream_declares_it():
    fold, kernel = fused_head._forward_tile, fused_head._forward_kernel
    with pytest.raises(RuntimeError, match="stop"), reading_tiles(SCORED, K):
        raise RuntimeError("stop")
    assert (fused_head._forward_tile, fused_head._forward_kernel) == (fold, kernel)
    names = list(inspect.signature(fold).parameters)
    assert tuple(names[: len(FOLD_ARGUMENTS)]) == FOLD_ARGUMENTS
    assert {"logit_scale", "softcap", "inv_t", "HAS_SOFTCAP"} < set(names)


def test_a_head_that_shows_other_positions_is_noticed():
    candidates = TileCandidates(SCORED, K, compact=False)
    head = {"logit_scale": 1.0, "softcap": 1.0, "inv_t": 1.0, "HAS_SOFTCAP": False}
    candidates.read(torch.zeros(4, 9), torch.zeros(4, dtype=torch.long), torch.zeros(4), 0, **head)
    with pytest.raises(RuntimeError, match="4 positions where 11"):
        candidates.result()
