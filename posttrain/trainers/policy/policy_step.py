"""A policy's optimizer step: each micro-batch is scored, its token losses weighted, reduced and accounted for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Protocol

from torch import Tensor

from posttrain.objectives.base import Groups, Objective, TokenBatch
from posttrain.objectives.step import detached
from posttrain.objectives.streams import column
from posttrain.observe.reasons import THROWN_AWAY
from posttrain.observe.signal import SignalCounts, account_objective
from posttrain.ops.kl import k3
from posttrain.ops.reduce import per_token
from posttrain.trainers.forward.padded import loss_mask
from posttrain.trainers.policy.critic import Critic, take_trunk
from posttrain.trainers.policy.loss_metrics import LossMetrics
from posttrain.trainers.policy.micro_batches import MicroBatches, Part, silent_row
from posttrain.trainers.policy.prompt_balance import BalancedHost, add_balance
from posttrain.trainers.policy.step_in_hand import StepHost, StepInHand
from posttrain.trainers.policy.token_batch import on_policy, unmoved_batch
from posttrain.trainers.policy.token_weights import WeightsHost, token_weights
from posttrain.trainers.seam.held_back import backward_of_a_part, gradients_held_back

Read = Callable[[Any, Mapping[str, Any]], tuple[TokenBatch, Tensor, Tensor | None]]


class PolicyStepHost(StepHost, WeightsHost, BalancedHost, Protocol):
    """What the loss reads of its trainer beyond the step itself: TRL's terms and their coefficients."""

    beta: float
    entropy_coef: float
    router_aux_loss_coef: float
    aux_loss_enabled: bool
    critic: Critic | None
    _entropy_bonus_enabled: bool


class PolicyStep(StepInHand):
    """`loss` for each micro-batch, in the order they come.

    read  scores a micro-batch of the rollout buffer: the batch, the entropies (with gradient), the router's
          auxiliary loss or None
    cut   splits the micro-batches of a step by tokens, where there is a limit
    """

    host: PolicyStepHost
    metrics: LossMetrics
    learns_from_texts: ClassVar[bool] = False

    def __init__(
        self,
        host: PolicyStepHost,
        objective: Objective,
        method: str,
        metrics: LossMetrics,
        read: Read,
        cut: MicroBatches,
    ) -> None:
        super().__init__(host, objective, method, metrics)
        if objective.reads_texts and not self.learns_from_texts:
            raise ValueError(
                f"{type(host).__name__}: texts beside (ptx_coef) are learned from by PPOTrainer and PPOMaxTrainer alone"
            )
        self.read = read
        self.cut = cut
        self._parts: list[list[Part]] = []  # of each micro-batch of TRL's buffer in this optimizer step

    def take(self, groups: Groups, output: dict[str, Any]) -> None:
        super().take(groups, output)
        add_balance(self.host, groups, output)

    def loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """This rank's share () of the step's loss times the number of ranks, because the engines average gradients
        over ranks. Where a token limit splits the micro-batch, all backwards but the last are run here, and the value
        is that of all its parts."""
        host = self.host
        if self.position == 0:
            self._parts = self.cut(self.slices())
        parts = self._parts[self.position]
        value: Tensor | None = None
        for at, part in enumerate(parts[:-1]):
            with gradients_held_back(host.accelerator, model):
                loss = self._part_loss(model, part, inputs, first=self.position == at == 0)
                backward_of_a_part(host.accelerator, loss)
                value = loss.detach() if value is None else value + loss.detach()
        loss = self._part_loss(model, parts[-1], inputs, first=self.position == 0 and len(parts) == 1)
        if self.position == host.current_gradient_accumulation_steps - 1:
            self.close()
            if host._entropy_bonus_enabled:
                self.log("entropy_coef", host.entropy_coef)
        return loss if value is None else loss + value

    def _part_loss(self, model: Any, inputs: Part, whole: dict[str, Any], *, first: bool) -> Tensor:
        host, ranks = self.host, self.host.accelerator.num_processes
        if inputs is None:
            return self._nothing(model, whole)
        batch, entropies, aux_loss = self.read(model, inputs)
        batch, trunk = take_trunk(batch)
        if first:
            self._begin(model, batch)
        step = self.current()
        self._note_logprobs(batch, inputs)
        self._rows.append(inputs["row"])
        weights = token_weights(host, batch, inputs, entropies)
        kls: list[Tensor] = []
        share = step.share(batch, lambda one, losses: self._with_terms(one, losses, weights, kls, inputs))
        batch, mask, loss = share.batch, share.mask, share.loss * ranks
        if host._entropy_bonus_enabled:
            bonus = (entropies * mask).sum() / step.totals.num_tokens.clamp(min=1.0) * ranks
            loss = loss - host.entropy_coef * bonus
        if (priced := self.objective.entropy_loss(entropies)) is not None:
            loss = loss + per_token(priced, mask, step.totals.num_tokens) * ranks
        if aux_loss is not None:
            loss = loss + host.router_aux_loss_coef * aux_loss / sum(map(len, self._parts))
        if host.critic is not None:
            learned = host.critic.learn(batch, inputs, step.totals, trunk)
            loss = (loss * 0.0 if host.critic.alone else loss) + learned
        self.metrics.add(
            self.objective,
            self.method,
            batch,
            keep=share.keep,
            kl=kls[0] if kls else None,
            families=host.family.masks(inputs) if kls else {},
            entropies=entropies.detach(),
            share=share.loss,
            first=first,
            aux_loss=aux_loss,
            signal=self.account(batch, inputs, share.keep, weights) + self._thrown_away(loss),
            logged=self.account_logged(batch, inputs, share.keep, weights),
        )
        return loss

    def _nothing(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """A pass of no weight, for the ranks that have another part: where weights are gathered for a pass, all
        ranks have to make it."""
        batch, entropies, _ = self.read(model, silent_row(inputs))
        return (batch.logprobs.sum() + entropies.sum()) * 0.0

    def _begin(self, model: Any, first: TokenBatch) -> None:
        """Only an objective that observes the step costs a second forward pass, and only where there is more than
        one micro-batch and the policy has moved since it sampled."""
        parts = [part for of_one in self._parts for part in of_one if part is not None]
        masks = [loss_mask(inputs).to(first.logprobs.dtype) for inputs in parts]
        self.open(masks, lambda: [detached(first), *self._others(model, first)])

    def _others(self, model: Any, first: TokenBatch) -> Iterator[TokenBatch]:
        """The micro-batches behind the first one, without gradient."""
        flat = list(zip(self.slices(), self._parts, strict=True))
        parts = [(whole, part) for whole, of_one in flat for part in of_one][1:]
        for whole, part in parts:
            if part is not None and self.objective.observes_only_ratio and on_policy(part):
                yield unmoved_batch(part, first.logprobs.dtype)
            elif part is not None:
                yield take_trunk(self.read(model, part)[0])[0]
            else:
                self._nothing(model, whole)

    def _with_terms(
        self,
        batch: TokenBatch,
        losses: Tensor,
        weights: Tensor | None,
        kls: list[Tensor],
        inputs: Mapping[str, Any],
    ) -> Tensor:
        """The objective's token losses, weighted, plus beta times the KL, which is left in `kls`. (B, T). A KL that the
        rewards have paid already is only left there."""
        if weights is not None:
            losses = losses * weights
        if self.host.beta == 0.0 or batch.ref_logprobs is None:
            return losses
        kl = k3(batch.logprobs, batch.ref_logprobs)
        if self.host.args.use_bias_correction_kl:
            kl = kl * self.objective.ratio(batch)
        if batch.logged is not None:  # the estimate is of what the policy samples
            kl = kl.masked_fill(batch.logged, 0.0)
        kls.append(kl)
        if self.objective.kl_in_reward:
            return losses
        factor = inputs.get("beta_factor")  # of each row's prompt
        return losses + self.host.beta * (kl if factor is None else column(factor) * kl)

    def _note_logprobs(self, batch: TokenBatch, inputs: Mapping[str, Any]) -> None:
        """A clipped ratio can hide an infinity from the loss: the log-probs are looked at themselves."""
        for name, logprobs in (
            ("the sampler's log-probs", inputs.get("sampling_per_token_logps")),
            ("the old policy's log-probs", batch.old_logprobs),
            ("the reference's log-probs", batch.ref_logprobs),
            ("the policy's log-probs", batch.logprobs),
        ):
            self.host.step_notes.note(name, logprobs, batch.mask)

    def _thrown_away(self, like: Tensor) -> SignalCounts:
        counts = SignalCounts.of(THROWN_AWAY, self.thrown_tokens, like.device)
        self.thrown_tokens = 0
        return counts

    def account(
        self, batch: TokenBatch, inputs: Mapping[str, Any], keep: Tensor | None, weights: Tensor | None
    ) -> SignalCounts:
        """Why each generated token of this micro-batch carries gradient or not."""
        generated = inputs["generated_mask"]
        return self._account(
            batch, inputs, keep, weights, generated if batch.logged is None else generated & ~batch.logged
        )

    def account_logged(
        self, batch: TokenBatch, inputs: Mapping[str, Any], keep: Tensor | None, weights: Tensor | None
    ) -> SignalCounts | None:
        """The same of the tokens of logged answers; None where the run has none."""
        if batch.logged is None:
            return None
        return self._account(batch, inputs, keep, weights, inputs["generated_mask"] & batch.logged)

    def _account(
        self,
        batch: TokenBatch,
        inputs: Mapping[str, Any],
        keep: Tensor | None,
        weights: Tensor | None,
        tokens: Tensor,
    ) -> SignalCounts:
        completion = inputs["completion_mask"]
        tool = inputs.get("tool_mask")
        return account_objective(
            self.objective,
            batch,
            generated=tokens,
            keep=keep,
            unjudged=inputs["unjudged"].unsqueeze(1),
            equal_rewards=inputs["equal_rewards"].unsqueeze(1),
            truncated=(completion.sum(1, keepdim=True) == 0),
            tool=None if tool is None else (tool == 0) & (completion == 1),
            importance=weights,
        )
