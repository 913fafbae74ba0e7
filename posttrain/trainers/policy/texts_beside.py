"""PPO-ptx: the language modelling loss of other texts beside the policy's, with a sampler and an account of its own.

    ptx_coef * sum of -log pi(token) / tokens      over the texts of the optimizer step, all ranks

Ouyang et al. 2022, https://arxiv.org/abs/2203.02155, eq. 2 (gamma is `ptx_coef`). The log-probs are the model's own,
at temperature 1, whatever the responses are sampled at.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor

from posttrain.ops.reduce import per_token
from posttrain.rollout.base import stable_seed
from posttrain.trainers.forward.base import Rows, Scorer
from posttrain.trainers.forward.token_budget import split_by_tokens
from posttrain.trainers.policy.text_rows import TokenTexts
from posttrain.trainers.seam.finite import StepNotes
from posttrain.trainers.seam.held_back import backward_of_a_part, gradients_held_back

Text = tuple[list[int], list[bool]]
"""Ids, and which of them are learned."""


class TextsHost(Protocol):
    """What is read of the trainer. The names are TRL's and transformers', but for `step_notes`."""

    accelerator: Accelerator
    args: Any
    _metrics: Any

    @property
    def step_notes(self) -> StepNotes: ...


class TextOrder:
    """Which texts come when: each pass over them in an order of its own, which follows from the seed and the pass.

    drawn  so many have been taken, by all ranks together; all there is to save
    """

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed, self.drawn = count, seed, 0
        self._pass, self._order = -1, torch.empty(0, dtype=torch.long)

    def take(self, size: int) -> list[int]:
        """The places of the next `size` texts; the next pass begins where one ends."""
        found = []
        for place in range(self.drawn, self.drawn + size):
            if place // self.count != self._pass:
                self._pass = place // self.count
                generator = torch.Generator().manual_seed(stable_seed("ptx", self.seed, self._pass))
                self._order = torch.randperm(self.count, generator=generator)
            found.append(int(self._order[place % self.count]))
        self.drawn += size
        return found


class TextsBeside:
    """Adds the gradient of the texts' loss before the first micro-batch of an optimizer step.

    per_step     texts of an optimizer step, of all ranks
    coefficient  of their loss
    name         under which the numbers are logged
    filler       the padding's id
    scorer       scores at temperature 1
    """

    def __init__(
        self,
        host: TextsHost,
        texts: TokenTexts,
        *,
        per_step: int,
        coefficient: float,
        name: str,
        filler: int,
        scorer: Scorer,
    ) -> None:
        ranks = host.accelerator.num_processes
        if per_step % ranks:
            raise ValueError(
                f"ptx_batch_size {per_step} is no multiple of the {ranks} processes, of which each takes its share; "
                f"take {ranks * (per_step // ranks + 1)}"
            )
        self.host, self.texts, self.name, self.scorer = host, texts, name, scorer
        self.per_step, self.coefficient, self.filler = per_step, coefficient, filler
        self.order = TextOrder(len(texts.rows), host.args.seed)

    def learn(self, model: Any) -> Tensor:
        """Draws the step's texts and runs their backwards, which wait for the policy's. The value () of this rank's
        share of the loss, times ranks, without gradient."""
        accelerator = self.host.accelerator
        ranks, rank = accelerator.num_processes, accelerator.process_index
        mine = [self.texts.rows[i] for i in self.order.take(self.per_step)[rank::ranks]]
        tokens = self._all_sum(torch.tensor(float(sum(sum(learned) for _, learned in mine))))
        value = torch.zeros((), device=accelerator.device)
        for part in self._parts(mine):
            rows, mask = self._rows(part if part else mine[:1])
            with gradients_held_back(accelerator, model):
                logprobs = self.scorer.score(model, rows).logprobs
                self.host.step_notes.note("the log-probs of the texts beside", logprobs, mask)
                counted = mask.to(logprobs) * bool(part)
                share = per_token(-logprobs, counted, tokens) * ranks * self.coefficient
                backward_of_a_part(accelerator, share)
            value = value + share.detach()
        logged = self.host._metrics["train"]
        loss = self._all_sum(value.double()).item() / (ranks * self.coefficient)
        logged[f"{self.name}/ptx_loss"].append(loss)
        logged[f"{self.name}/ptx_tokens"].append(tokens.item())
        logged[f"{self.name}/ptx_passes"].append(self.order.drawn / self.order.count)
        return value

    def _parts(self, texts: list[Text]) -> list[list[Text]]:
        """Texts of one forward each, as many parts on every rank: `per_device_train_batch_size` of them, or fewer where
        they would hold more than `max_tokens_per_micro_batch` tokens; empty ones stand for another rank's."""
        at_once, limit = self.host.args.per_device_train_batch_size, self.host.args.max_tokens_per_micro_batch
        parts = [texts[start : start + at_once] for start in range(0, len(texts), at_once)]
        if limit is None:
            return parts
        cut = [[part[i] for i in places] for part in parts for places in _within(part, limit)]
        accelerator = self.host.accelerator
        counts = torch.as_tensor(accelerator.gather(torch.tensor([len(cut)], device=accelerator.device)))
        return cut + [[]] * (int(counts.max()) - len(cut))

    def _rows(self, texts: Sequence[Text]) -> tuple[Rows, Tensor]:
        """The texts as prompts, up to the first token that is learned, and completions; and which tokens of these are
        learned (B, T)."""
        device = self.host.accelerator.device
        starts = [learned.index(True) for _, learned in texts]
        heads = [ids[:start] for (ids, _), start in zip(texts, starts, strict=True)]
        tails = [ids[start:] for (ids, _), start in zip(texts, starts, strict=True)]
        rows = Rows.of_lists(heads, tails, filler=self.filler, device=device)
        mask = torch.zeros_like(rows.completion_mask)
        for row, ((_, learned), start) in enumerate(zip(texts, starts, strict=True)):
            mask[row, : len(learned) - start] = torch.tensor(learned[start:], device=device).to(mask)
        return rows, mask

    def _all_sum(self, value: Tensor) -> Tensor:
        accelerator = self.host.accelerator
        return torch.as_tensor(accelerator.reduce(value.to(accelerator.device), reduction="sum"))

    # Resume

    def state(self) -> dict[str, Any]:
        return {"drawn": self.order.drawn, "texts": self._fingerprint()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """ValueError where the texts are not those that the checkpoint was made with."""
        if state["texts"] != self._fingerprint():
            raise ValueError(
                "ptx: the texts are not those the run began with: some would be repeated or skipped; resume with the "
                "old file and ptx_max_length, or start anew"
            )
        self.order.drawn = int(state["drawn"])

    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        for ids, learned in self.texts.rows:
            digest.update(repr((ids, learned)).encode())
        return digest.hexdigest()[:16]


def _within(texts: Sequence[Text], limit: int) -> list[list[int]]:
    """The texts' places in parts of at most `limit` tokens, padding among them."""
    heads = [learned.index(True) for _, learned in texts]
    tails = [len(ids) - head for (ids, _), head in zip(texts, heads, strict=True)]
    return split_by_tokens(heads, tails, None, limit)
