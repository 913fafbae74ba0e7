"""The order of an optimizer step, and that it is the same whether micro-batches come together or one by one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from posttrain.objectives.base import Objective, StepTotals, TokenBatch
from posttrain.objectives.step import OptimizerStep, step_losses

CALLS: list[str] = []


@dataclass(frozen=True)
class Spoken(Objective):
    """Keeps tokens above a log-prob that it observes over the step; says what it is asked."""

    def prepare(self, batch: TokenBatch) -> TokenBatch:
        return replace(batch, forward={**batch.forward, "prepared": batch.logprobs.detach()})

    def observe_step(self, batches: Any, all_sum: Any) -> dict[str, Any]:
        assert all(not batch.logprobs.requires_grad for batch in batches)
        assert [batch.index for batch in batches] == list(range(len(batches)))
        CALLS.append("observe")
        total = all_sum(torch.stack([batch.logprobs.sum() for batch in batches]).sum())
        return {"mean": total / all_sum(torch.tensor(float(sum(b.logprobs.numel() for b in batches))))}

    def keep(self, batch: TokenBatch) -> Tensor:
        CALLS.append("keep")
        assert "prepared" in batch.forward
        return batch.logprobs.detach() > batch.step["mean"]

    def token_loss(self, batch: TokenBatch) -> Tensor:
        CALLS.append("loss")
        assert batch.step["learning_rate"] == 0.5
        return -batch.logprobs * batch.advantages

    def reduce(self, losses: Tensor, mask: Tensor, totals: StepTotals) -> Tensor:
        CALLS.append("reduce")
        return (losses * mask).sum() / totals.num_tokens

    def finish_step(self, batches: Any, all_sum: Any) -> dict[str, Any]:
        CALLS.append("finish")
        return {"seen": float(len(batches))}


@dataclass(frozen=True)
class Observing(Spoken):
    observes_step = True


def batch_of(values: list[list[float]]) -> TokenBatch:
    logprobs = torch.tensor(values)
    return TokenBatch(
        logprobs=logprobs.clone().requires_grad_(),
        old_logprobs=logprobs,
        mask=torch.ones_like(logprobs),
        advantages=torch.tensor([[1.0]]),
    )


def all_sum(values: Tensor) -> Tensor:
    CALLS.append("sum")
    return values


def test_observe_keep_count_loss_reduce_finish():
    CALLS.clear()
    batches = [batch_of([[-1.0, -4.0]]), batch_of([[-2.0, -3.0]])]
    known = {"learning_rate": 0.5}
    step = OptimizerStep(
        Observing(),
        [b.mask for b in batches],
        lambda: batches,
        max_completion_length=2,
        known=known,
        all_sum=all_sum,
    )
    assert [one for one in CALLS if one != "sum"] == ["observe", "keep", "keep"]
    assert CALLS[-1] == "sum"  # counts after what is kept of all of them
    assert (step.totals.num_tokens.item(), step.totals.num_responses.item()) == (2.0, 2.0)  # -1 and -2
    CALLS.clear()
    shares = [step.share(batch) for batch in batches]
    assert CALLS == ["keep", "loss", "reduce"] * 2
    assert [share.loss.item() for share in shares] == [0.5, 1.0]
    assert [share.batch.index for share in shares] == [0, 1]
    assert step.finish() == {"seen": 2.0}
    together = step_losses(Observing(), batches, max_completion_length=2, known=known)
    assert [loss.item() for loss in together.losses] == [0.5, 1.0]


def test_only_an_objective_that_observes_asks_for_all_micro_batches():
    batches = [batch_of([[-1.0, -4.0]])]
    step = OptimizerStep(
        Spoken(),
        [batches[0].mask],
        lambda: pytest.fail("asked"),
        max_completion_length=2,
        known={"mean": -2.0},
    )
    assert step.totals.num_tokens.item() == 2.0


def test_what_the_caller_adds_enters_before_the_reduction():
    batch = batch_of([[-1.0, -4.0]])
    step = OptimizerStep(
        Spoken(),
        [batch.mask],
        lambda: [batch],
        max_completion_length=2,
        known={"learning_rate": 0.5, "mean": -9.0},
    )
    share = step.share(batch, lambda one, losses: losses * 2 + one.mask)
    assert share.loss.item() == (2.0 + 1.0 + 8.0 + 1.0) / 2
