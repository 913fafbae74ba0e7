"""Rollouts of a masked-diffusion policy: which rows are sampled with which seeds, by the model in training."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from accelerate import Accelerator

from posttrain.rollout.base import Sampling, stable_seed
from posttrain.rollout.masked.masked_engine import MaskedDiffusionEngine
from posttrain.rollout.masked.predictor import MaskPredictor, check_mask_predictor, whole_on_this_rank
from posttrain.rollout.masked.sampler_options import DiffusionSampling
from posttrain.trainers.masked.elbo_scorer import ElboScorer


class MaskedHost(Protocol):
    """What sampling reads of its trainer. The names are TRL's, but for `held_out` and `check_sampled`."""

    args: Any
    accelerator: Accelerator
    model: Any
    state: Any
    held_out: list[Any]
    temperature: float
    max_completion_length: int
    eos_token_ids: Any

    def check_sampled(self, logprobs: Iterable[Iterable[float]]) -> None: ...


class MaskedRollouts:
    """One trainer's use of the masked-diffusion engine."""

    def __init__(
        self,
        host: MaskedHost,
        scorer: ElboScorer,
        options: DiffusionSampling,
        *,
        pad_token_id: int,
        dtype: Any,
    ) -> None:
        self.host = host
        self.scorer = scorer
        self._probed = False
        if whole_on_this_rank():
            self._probe_model()
        self.engine = MaskedDiffusionEngine(
            self._predicting, options, pad_token_id=pad_token_id, dtype=dtype, any_rank=self._any_rank
        )

    def _any_rank(self, here: bool) -> bool:
        accelerator: Any = self.host.accelerator
        if accelerator.num_processes == 1:
            return here
        flag = torch.tensor(float(here), device=accelerator.device)
        return bool(accelerator.reduce(flag, reduction="sum") > 0)

    def _probe_model(self) -> None:
        """Refuses a model that looks to the left only. Every rank must come here."""
        self._probed = True
        if check_mask_predictor(self.scorer.own_predictor()) == "attended":
            self.host.accelerator.print(
                f"{type(self.scorer.predictor.model).__name__} attends to padding: an ELBO depends on how far its "
                "prompt is padded. Old and new policy see the same padding, the sampler may see another; prompts of "
                "equal length have none."
            )

    def _predicting(self) -> AbstractContextManager[MaskPredictor]:
        if not self._probed:  # the first rollout, before any step
            self._probe_model()
        return nullcontext(self.scorer.own_predictor())

    def single_turn(self, prompt_ids: list[list[int]]) -> list[list[int]]:
        """Completions, cut behind their end."""
        host = self.host
        completions = self.engine.generate(prompt_ids, sampling_of(host, len(prompt_ids)))
        host.check_sampled(completion.logprobs for completion in completions)
        return [completion.token_ids for completion in completions]


def sampling_of(host: MaskedHost, count: int) -> list[Sampling]:
    """For each of this rank's `count` rows its temperature and a seed of its own, whatever the number of ranks."""
    training, rank = host.model.training, host.accelerator.process_index
    temperature = host.temperature if training else host.args.eval_temperature
    # An evaluation must not depend on how many came before it, nor training on any of them.
    key = ("train", host.state.global_step) if training else ("eval", len(host.held_out))
    seed = stable_seed(host.args.seed, "rollout", *key)
    return [
        Sampling(
            temperature=host.temperature if temperature is None else temperature,
            max_new_tokens=host.max_completion_length,
            stop_token_ids=tuple(host.eos_token_ids),
            seed=seed + rank * count + i,
        )
        for i in range(count)
    ]
