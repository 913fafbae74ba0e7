"""SALSA's trainer: a policy objective whose KL reference is a soup. See posttrain/references/salsa.py."""

# pyright: reportArgumentType=false, reportOptionalMemberAccess=false
# Upstream annotates its trainers more widely than what their attributes hold once they are built.

from __future__ import annotations

import logging
from typing import Any

import torch
from accelerate.utils import is_peft_model
from torch import Tensor
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from posttrain.objectives.base import Objective, TokenBatch
from posttrain.objectives.logged_rows import samples_only
from posttrain.ops.kl import k3
from posttrain.recipe.errors import suggest
from posttrain.recipe.methods import inner_class
from posttrain.references.salsa import SALSA
from posttrain.rollout.model_folder import tokenizer_of
from posttrain.trainers.forward.base import Rows, Wanted
from posttrain.trainers.models.reference import copy_of_policy, frozen_reference
from posttrain.trainers.models.soups import check_vocabulary, soup_with
from posttrain.trainers.policy.loss_metrics import LossMetrics
from posttrain.trainers.policy.policy_step import PolicyStep
from posttrain.trainers.policy.trainer import PolicyTrainer
from posttrain.trainers.seam.config import PolicyConfig, flat_config, settings_from
from posttrain.trainers.seam.faults import NotUnderThisEngine
from posttrain.trainers.seam.trl_seam import use_adapter

SALSAConfig = flat_config("SALSAConfig", PolicyConfig, SALSA, __name__)

logger = logging.getLogger(__name__)

_START = "start_per_token_logps"


class SALSATrainer(PolicyTrainer):
    """`SALSATrainer(model, reward_funcs, args=SALSAConfig(output_dir=..., beta=0.05, others=["sft2"]), ...)`.

    The policy starts at `model`, which is also the first model of the soup. Weights [1, 0] train exactly as the
    objective does with its usual reference. With a `processing_class`, the others' vocabularies are compared with it.
    """

    config_class = SALSAConfig

    def __init__(
        self, model: Any, reward_funcs: Any = None, args: Any = None, *more: Any, **named: Any
    ) -> None:
        if args is None:
            raise ValueError("SALSA: args=SALSAConfig(..., others=...) names the other models of the soup")
        if not isinstance(args, SALSAConfig):
            raise TypeError(
                f"SALSATrainer: args is a {type(args).__name__}, which cannot name the other models of the soup; "
                "pass a posttrain.trainers.SALSAConfig(..., others=...)"
            )
        settings = settings_from(args, SALSA)
        if args.beta == 0.0:
            raise ValueError(
                "SALSA: the soup is the KL reference, which has no effect at beta 0; set beta above 0"
            )
        if args.sync_ref_model:
            raise ValueError("SALSA: sync_ref_model would overwrite the soup; leave it out")
        if isinstance(model, str):
            raise ValueError("SALSA: pass the model itself, whose weights enter the soup, not its path")
        if is_deepspeed_zero3_enabled():
            raise NotUnderThisEngine(
                "SALSA: under ZeRO-3 no process holds the weights to average; use ZeRO-2, FSDP2 or DDP"
            )
        self.settings = settings
        self._start_model: Any = None
        named.setdefault("objective", base_objective(settings))
        _check_vocabularies(named.get("processing_class"), settings.others)
        soup = soup_with(model, settings.others, settings.weights)
        super().__init__(model, reward_funcs, args, *more, ref_model=soup, **named)
        if settings.kl_to_start and self._makes_reference:  # an adapter run has its start in the base
            self._start_model = frozen_reference(self, copy_of_policy(self))

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        if self.model.training and self.settings.kl_to_start:
            output[_START] = self._start_logprobs(output)
        return output

    @torch.no_grad()
    def _start_logprobs(self, rollout: dict[str, Any]) -> Tensor:
        """Log-probs of the sampled tokens under the policy as it started. (B, T)."""
        rows, wanted = Rows.of_buffer(rollout), Wanted(rows_at_once=self.args.per_device_train_batch_size)
        if self._start_model is not None:
            return self.scorer.score(self._start_model, rows, wanted).logprobs
        policy: Any = self.accelerator.unwrap_model(self.model)
        if not is_peft_model(policy):
            raise RuntimeError("SALSA: the policy's start was not kept, and it has no adapter to take off")
        with use_adapter(policy, adapter_name="ref" if "ref" in policy.peft_config else None):
            return self.scorer.score(self.model, rows, wanted).logprobs

    def make_step(self) -> PolicyStep:
        metrics = LossMetrics(self.accelerator)
        return SALSAStep(self, self.objective, self.method, metrics, self._read, self._micro_batches())


class SALSAStep(PolicyStep):
    """Also logs two KL estimates (k3, nats per token): to the soup, and to the policy as it started."""

    def account(self, batch: TokenBatch, inputs: Any, *more: Any) -> Any:
        others = {"salsa/kl_to_soup": batch.ref_logprobs, "salsa/kl_to_start": inputs.get(_START)}
        for name, logprobs in others.items():
            if logprobs is not None:
                mask = samples_only(batch).mask
                kl = k3(batch.logprobs.detach(), logprobs) * mask
                total, tokens = self.all_sum(torch.stack([kl.sum(), mask.sum()]).double()).tolist()
                self.log(name, total / max(tokens, 1.0))
        return super().account(batch, inputs, *more)


def _check_vocabularies(tokenizer: Any, others: list[str]) -> None:
    if tokenizer is None:
        return
    for path in others:
        try:
            other: Any = tokenizer_of(path)
        except (OSError, ValueError):
            logger.warning("SALSA: %s holds no tokenizer, so its vocabulary could not be compared", path)
            continue
        check_vocabulary(tokenizer, "the policy", other, path)


def base_objective(settings: SALSA) -> Objective:
    """The objective that optimises the reward, with its own settings; ValueError names a setting it lacks."""
    objective_class: Any = inner_class(SALSA, settings.objective)
    known = objective_class.__dataclass_fields__
    for name in settings.objective_settings:
        if name not in known:
            raise ValueError(
                f"SALSA: objective_settings: {objective_class.__name__} has no setting '{name}'{suggest(name, known)}"
            )
    return objective_class(**settings.objective_settings)
