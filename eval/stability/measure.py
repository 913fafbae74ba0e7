"""What the lab measures beside the product's own log: coverage of responses, and how CAPO's predictions come true."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from posttrain.objectives.base import AllSum, TokenBatch
from posttrain.objectives.capo import CAPO
from posttrain.observe.signal import token_gradient
from posttrain.trainers.forward.base import Rows


@dataclass(frozen=True)
class WatchedCAPO(CAPO):
    """CAPO that remembers each token's shift in the step under way, whether it was kept, whether it is a loss token,
    and A (1 - p): how far and which way its gradient pushes its own logit."""

    @cached_property
    def seen(self) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        return []

    def finish_step(self, batches: Sequence[TokenBatch], all_sum: AllSum) -> dict[str, Any]:
        prepared = [self.prepare(batch) for batch in batches]
        self.seen[:] = [
            (b.forward["policy_shift"], self.keep(b), b.mask > 0, self._push(b)) for b in prepared
        ]
        return super().finish_step(batches, all_sum)

    def _push(self, batch: TokenBatch) -> Tensor:
        return self.effective_advantages(batch) * (1 - batch.logprobs.detach().exp())


@dataclass(frozen=True)
class RandomRejection(WatchedCAPO):
    """Rejects as many loss tokens of a micro-batch as CAPO would, but at random."""

    def keep(self, batch: TokenBatch) -> Tensor:
        tokens = batch.mask > 0
        count = int((tokens & ~super().keep(batch)).sum())
        # asked several times a step about the same batch, it must give the same answer
        seed = zlib.crc32(batch.logprobs.detach().cpu().numpy().tobytes())
        draw = torch.rand(batch.mask.shape, generator=torch.Generator().manual_seed(seed))
        rejected = draw.masked_fill(~tokens, -1.0).flatten().topk(count).indices
        kept = torch.ones(batch.mask.numel(), dtype=torch.bool)
        kept[rejected] = False
        return kept.view_as(tokens)


def watch_coverage(trainer: Any) -> None:
    """Logs lab/coverage: share of the step's responses with gradient on at least one token."""
    account = trainer.step.account

    def accounted(batch: TokenBatch, inputs: Any, keep: Tensor | None, *rest: Any) -> Any:
        carries = (token_gradient(trainer.objective, batch) != 0) & (batch.mask > 0)
        if keep is not None:
            carries &= keep
        trainer._metrics["train"]["lab/coverage"].append(carries.any(dim=1).float().mean().item())
        return account(batch, inputs, keep, *rest)

    trainer.step.account = accounted


class ShiftMeter(TrainerCallback):
    """Every few steps: CAPO's predicted policy shift against the exact KL of the update that followed.

    Logs lab/kl_update (that KL, mean over loss tokens, nats), lab/spearman (rank correlation over loss tokens),
    lab/kl_rejected_over_kept (ratio of mean KLs), and what rejected tokens hold of the summed push, A (1 - p):
    lab/rejected_push of its absolute value, lab/rejected_push_down of the part with A < 0, lab/rejected_push_up of the
    rest. One micro-batch a step.
    """

    def __init__(self, trainer: Any, every: int = 4) -> None:
        self.trainer, self.every = trainer, every
        self.before: Tensor | None = None
        self.inputs: dict[str, Any] = {}
        compute = trainer._compute_loss

        def computed(model: Any, inputs: dict[str, Any]) -> Tensor:
            self.inputs = inputs
            return compute(model, inputs)

        trainer._compute_loss = computed

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        moves = not self.trainer.objective.calibrating
        due = state.global_step % self.every == 0 and state.global_step > 0 and moves
        self.before = self._policy() if due else None

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.before is None:
            return
        after = self._policy()
        kl = (self.before.exp() * (self.before - after)).sum(dim=-1)
        shift, kept, tokens, push = self.trainer.objective.seen[0]
        log = self.trainer._metrics["train"]
        log["lab/spearman"].append(spearman(shift[tokens], kl[tokens]))
        rejected = tokens & ~kept
        log["lab/kl_update"].append(kl[tokens].mean().item())
        if rejected.any():
            log["lab/kl_rejected_over_kept"].append((kl[rejected].mean() / kl[tokens & kept].mean()).item())
        parts = {"": push.abs(), "_down": (-push).clamp(min=0), "_up": push.clamp(min=0)}
        for name, part in parts.items():
            whole = part[tokens].sum()
            if whole > 0:
                log[f"lab/rejected_push{name}"].append((part[rejected].sum() / whole).item())

    @torch.no_grad()
    def _policy(self) -> Tensor:
        """Log-probs of the whole vocabulary at every completion token of the step. (B, T, V)."""
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        rows = Rows.of_buffer(self.inputs)
        ids, mask = rows.joined
        length = rows.completion_ids.size(1)
        hidden = model.base_model(input_ids=ids, attention_mask=mask, **rows.extras).last_hidden_state[
            :, -length - 1 : -1
        ]
        return model.get_output_embeddings()(hidden).div(self.trainer.temperature).log_softmax(dim=-1)


def spearman(first: Tensor, second: Tensor) -> float:
    """Rank correlation of two vectors (n,); ties share no ranks, which continuous values do not need."""
    ranks = torch.stack([values.argsort().argsort().double() for values in (first, second)])
    return float(torch.corrcoef(ranks)[0, 1])
