from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from posttrain.objectives.base import Groups, Objective, TokenBatch
from posttrain.objectives.cispo import CISPO
from posttrain.objectives.copo import COPO
from posttrain.objectives.grpo import GRPO
from posttrain.objectives.gspo import GSPO
from posttrain.observe.reasons import CARRIED, CLASSES, REASONS, THROWN_AWAY
from posttrain.observe.signal import SignalCounts, account, account_objective, token_gradient

NAN = float("nan")


def column(values: list[float]) -> Tensor:
    return torch.tensor(values).unsqueeze(1)


def test_every_reason_by_hand() -> None:
    """Thirteen responses of one token, one for each class a batch can hold; bounds (0.8, 1.2)."""
    order = [name for name in CLASSES if name != THROWN_AWAY]

    def flag(name: str) -> Tensor:
        return torch.tensor([[name == other] for other in order])

    masked = flag("truncated") | flag("tool") | flag("other")
    advantage = torch.ones(13, 1)
    advantage[flag("equal_rewards") | flag("unjudged")] = 0
    advantage[flag("clipped_low") | flag("dual_clipped")] = -1
    advantage[flag("other")] = -1
    ratio = torch.ones(13, 1)
    ratio[flag("clipped_low") | flag("other")] = 0.7  # what is masked cannot be clipped
    ratio[flag("clipped_high")] = 1.3
    ratio[flag("dual_clipped")] = 9.0
    gradient = -advantage * ratio
    gradient[flag("clipped_low") | flag("clipped_high") | flag("dual_clipped") | flag("other")] = 0
    gradient[flag("nonfinite")] = NAN
    counts = account(
        generated=torch.ones(13, 1),
        mask=1.0 - masked.float(),
        advantage=advantage,
        gradient=gradient,
        ratio=ratio,
        bounds=(0.8, 1.2),
        keep=~flag("curvature"),
        unjudged=flag("unjudged"),
        truncated=flag("truncated"),
        tool=flag("tool"),
        importance=1.0 - flag("importance").float(),
        left_out=flag("left_out"),
    )
    assert counts.as_dict() == dict.fromkeys(order, 1) | {THROWN_AWAY: 0}
    assert counts.metrics()["signal/tokens"] == 13
    assert sum(counts.shares().values()) == pytest.approx(1)


def test_what_was_thrown_away_is_added_beside_the_batch() -> None:
    batch = SignalCounts.of(CARRIED, 6)
    assert (
        not {"signal/thrown_away", "signal/left_out"} & batch.metrics().keys()
    )  # most runs use all they sample
    found = (batch + SignalCounts.of(THROWN_AWAY, 2)).metrics()
    assert (found["signal/tokens"], found["signal/thrown_away"], found["signal/carried"]) == (8, 0.25, 0.75)


def test_a_token_with_every_reason_is_counted_once_under_the_first() -> None:
    """Lifting the reasons one after the other moves the single token down the list, and never counts it twice."""
    flags = {
        "unjudged": torch.tensor([[True]]),
        "truncated": torch.tensor([[True]]),
        "tool": torch.tensor([[True]]),
        "importance": torch.zeros(1, 1),
    }
    generated, dropped = torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.bool)
    zero, bad = torch.zeros(1, 1), torch.full((1, 1), NAN)
    seen = []

    def add(mask: float, advantage: float, **kwargs: Tensor) -> None:
        found = account(
            generated=generated, mask=column([mask]), advantage=column([advantage]), bounds=(0.8, 1.2), **kwargs
        ).as_dict()  # fmt: skip
        assert sum(found.values()) == 1
        seen.extend(name for name, count in found.items() if count)

    add(0, 0, gradient=zero, ratio=column([0.1]), keep=dropped, **flags)
    flags.pop("tool")
    add(0, 0, gradient=zero, ratio=column([0.1]), keep=dropped, **flags)
    flags.pop("unjudged")
    add(0, 0, gradient=zero, ratio=column([0.1]), keep=dropped, **flags)
    add(0, -1, gradient=zero, ratio=column([0.1]), keep=dropped, **flags)
    flags.pop("truncated")
    add(0, -1, gradient=zero, ratio=column([0.1]), keep=dropped, **flags)
    flags.pop("importance")
    add(1, -1, gradient=zero, ratio=column([0.1]), keep=dropped, left_out=torch.tensor([[True]]))
    add(1, -1, gradient=zero, ratio=column([0.1]), keep=dropped)
    add(1, 1, gradient=zero, ratio=column([9.0]), keep=dropped)
    add(1, -1, gradient=zero, ratio=column([9.0]), keep=dropped)
    add(1, 1, gradient=bad, ratio=column([9.0]), keep=dropped)
    add(1, 1, gradient=column([0.5]), ratio=column([1.0]), keep=dropped)
    add(1, 1, gradient=zero, ratio=column([1.0]))
    add(1, 1, gradient=column([0.5]), ratio=column([1.0]))
    assert seen == [*(name for name in REASONS if name != THROWN_AWAY), CARRIED]


def test_padding_is_no_token_and_masks_alone_decide_about_truncation() -> None:
    """Row 0: two tokens and a pad. Row 1: cut off, but the run does not mask truncated responses."""
    generated = torch.tensor([[1, 1, 0], [1, 1, 1]])
    counts = account(
        generated=generated,
        mask=generated,
        advantage=column([1.0, -1.0]),
        gradient=torch.full((2, 3), 0.5),
        ratio=torch.ones(2, 3),
        truncated=torch.tensor([[False], [True]]),
    )
    assert counts.as_dict()[CARRIED] == 5
    assert sum(counts.as_dict().values()) == 5


def test_counts_add_up_over_micro_batches_and_nothing_generated_is_no_division() -> None:
    one = SignalCounts(torch.arange(len(CLASSES)))
    assert (one + one).counts.tolist() == (2 * torch.arange(len(CLASSES))).tolist()
    assert (SignalCounts.zero() + one).as_dict() == one.as_dict()
    assert set(SignalCounts.zero().shares().values()) == {0.0}
    name, meaning, tokens, share = one.table()[-1]
    assert (name, tokens, share) == ("other", 13, pytest.approx(13 / 91))
    assert meaning == REASONS["other"]


def batch_of(ratios: list[list[float]], advantages: list[float], **streams: Tensor) -> TokenBatch:
    ratio = torch.tensor(ratios)
    return TokenBatch(
        logprobs=ratio.log() - 1,
        old_logprobs=torch.full_like(ratio, -1.0),
        mask=torch.ones_like(ratio),
        advantages=column(advantages),
        streams=streams,
    )


def counted(objective: Objective, batch: TokenBatch) -> dict[str, int]:
    found = account_objective(objective, batch, generated=batch.mask).as_dict()
    return {name: count for name, count in found.items() if count}


def test_clipped_surrogate_by_hand() -> None:
    """Bounds (0.8, 1.2). A=+1: 1.3 is clipped, 0.7 is not. A=-1: the reverse. A=0: no token has signal."""
    batch = batch_of([[0.7, 1.0, 1.3]] * 3, [1.0, -1.0, 0.0])
    assert counted(GRPO(clip_low=0.2, clip_high=0.2), batch) == {
        "carried": 4, "clipped_low": 1, "clipped_high": 1, "equal_rewards": 3,
    }  # fmt: skip
    gradient = token_gradient(GRPO(clip_low=0.2, clip_high=0.2), batch)
    torch.testing.assert_close(gradient, torch.tensor([[-0.7, -1, 0], [0, 1, 1.3], [0, 0, 0]]))


def test_a_ratio_of_a_response_clips_all_its_tokens() -> None:
    batch = batch_of([[1.3, 1.3, 1.3], [1.0, 1.0, 1.0]], [1.0, 1.0])
    assert counted(GSPO(clip_low=0.2, clip_high=0.2), batch) == {"carried": 3, "clipped_high": 3}


def test_clipped_weights_keep_their_gradient() -> None:
    """CISPO clips the weight of a token, not its gradient."""
    batch = batch_of([[0.01, 1.0, 50.0]], [1.0])
    assert counted(CISPO(), batch) == {"carried": 3}


def test_a_blended_loss_carries_gradient_where_the_local_advantage_is_zero() -> None:
    """COPO: a group of equal rewards has a global advantage; its sign says what clips."""
    batch = batch_of(
        [[0.7, 1.0, 1.3], [1.0, 1.0, 1.0]],
        [0.0, 0.0],
        global_advantages=column([-0.8, 0.0]),
        local_weight=column([0.25, 0.25]),
        global_weight=column([0.75, 0.75]),
    )
    assert counted(COPO(), batch) == {"carried": 2, "clipped_low": 1, "equal_rewards": 3}


def test_infinite_ratio_and_nan_logprobs_are_named() -> None:
    batch = batch_of([[1.0, 1.0], [1.0, 1.0]], [1.0, -1.0])
    batch.logprobs[0, 0] = NAN
    assert counted(GRPO(), batch) == {"carried": 3, "nonfinite": 1}


def test_equal_rewards_can_be_told_from_a_zero_advantage() -> None:
    """Rewards 0, 0.5, 1: the middle one has advantage zero, but its group is not degenerate."""
    batch = batch_of([[1.0]] * 3, [-1.0, 0.0, 1.0])
    counts = account_objective(
        GRPO(), batch, generated=batch.mask, equal_rewards=torch.zeros(3, 1, dtype=torch.bool)
    ).as_dict()
    assert (counts["carried"], counts["other"], counts["equal_rewards"]) == (2, 1, 0)


@dataclass(frozen=True)
class Constant(Objective):
    def token_loss(self, batch: TokenBatch) -> Tensor:
        return torch.ones_like(batch.mask)


def test_a_loss_without_gradient_is_no_error() -> None:
    batch = batch_of([[1.0, 1.0]], [1.0])
    with torch.no_grad():  # the trainer may account outside of any graph
        assert counted(Constant(), batch) == {"other": 2}
        assert counted(GRPO(), batch) == {"carried": 2}


def test_accounting_leaves_the_batch_and_its_graph_alone() -> None:
    batch = batch_of([[1.0, 1.3]], [1.0])
    logprobs = batch.logprobs.requires_grad_()
    account_objective(GRPO(), batch, generated=batch.mask)
    assert logprobs.grad is None
    groups = Groups(torch.zeros(1, 2), torch.zeros(1, 2, 1), torch.ones(1))
    assert set(GRPO().advantages(groups)) == {"advantages"}
