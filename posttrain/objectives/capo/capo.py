"""CAPO, curvature-aware policy optimisation. 2025 (ICLR 2026), https://arxiv.org/abs/2510.00819

Against its base (GRPO, Dr.GRPO, REINFORCE, ...): the loss is unchanged, but tokens whose own optimizer step
is predicted to move the objective or the policy too far are left out, of the sum and of its divisor. The
prediction is a second-order model of the LM head alone (eq. 7 to 10).
Departures from the released code, which pairs a token's logits with the next position's hidden state: here
both are those of the position that predicts the token. Logits are after sampling temperature, the sampled id
is always a candidate, and moments are updated once an optimizer step over all micro-batches. `calibrate` and the
settings that begin with calibration, `excess: scale`, and bases other than the paper's three, are ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from difflib import get_close_matches
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Lt
from pydantic.dataclasses import dataclass
from torch import Tensor

from posttrain.objectives.base import AllSum, Groups, Objective, StepTotals, TokenBatch
from posttrain.objectives.capo.calibration import Calibration
from posttrain.objectives.capo.histogram import joint_counts
from posttrain.objectives.capo.moments import Moments, RowGradients
from posttrain.objectives.capo.notes import run_notes
from posttrain.objectives.capo.shifts import candidate_scores, candidate_shifts, keep_tokens, step_weights
from posttrain.recipe.methods import bases_of, inner_class
from posttrain.settings import BuiltOn, Note, Pair, RunCurves, RunView

_THRESHOLDS: dict[str, tuple[float, float]] = {
    "grpo": (1e-2, 1e-4),
    "dr_grpo": (5e-4, 1e-3),
    "reinforce": (1e-1, 1e-5),
}
"""The paper's (objective, policy) thresholds by base; GRPO's stand in for the bases the paper does not
have."""


@dataclass(frozen=True)
class CAPO(Objective):
    """Thresholds left at None are the paper's for the base (`_THRESHOLDS`), or, with `calibrate`, the
    proposed ones."""

    fixed_on_resume: ClassVar[tuple[str, ...]] = ("base", "optimizer_model", "calibrate")
    # A ratio per response (GSPO) has no token of its own to reject.
    built_on: ClassVar[BuiltOn | None] = BuiltOn("base", "base_settings", "ratio_per_token")
    ratio_per_token: ClassVar[bool] = False

    base: str = "grpo"
    """whose loss the kept tokens have"""
    base_settings: dict[str, Any] | None = None
    """the base's own settings, e.g. {clip_high: 0.28}"""
    objective_threshold: Annotated[float, Ge(0)] | None = None
    """tau_H (delta_H); 0 = test off"""
    policy_threshold: Annotated[float, Ge(0)] | None = None
    """tau_F (delta_F); 0 = test off"""
    symmetric: bool = True
    """-tau_H < m_H; false: 0 <= m_H"""
    excess: Literal["reject", "scale"] = "reject"
    """a token over a threshold is left out, or scaled down to it (ours)"""
    num_candidates: Annotated[int, Ge(2)] = 50
    """K, the candidate ids per token; one alone never moves"""
    optimizer_model: Literal["adam", "sgd"] = "adam"
    """Opt: what a token's own step is predicted with"""
    cold_start: Literal["raw", "adam"] = "raw"
    """Adam model before its first update: gradient, or Adam"""
    moment_decay: Pair = (0.9, 0.999)
    """beta_1, beta_2 of the Adam model"""
    moment_epsilon: Annotated[float, Gt(0)] = 1e-8
    """epsilon of the Adam model"""
    calibrate: bool = False
    """first steps with the tests off, then the thresholds they propose"""
    calibration_steps: Annotated[int, Ge(1)] = 2
    """optimizer steps measured, once the Adam model acts"""
    calibration_holds: bool = False
    """no token counts while calibrating, so that the policy stays as it is"""
    calibration_follows: bool = False
    """thresholds rise where later steps would reject more than the target"""
    target_rejection: Annotated[float, Gt(0), Lt(1)] = 0.05
    """share of the tokens with an advantage that the proposed thresholds reject"""

    def __post_init__(self) -> None:
        inner_class(CAPO, self.base)
        given = self.objective_threshold is not None or self.policy_threshold is not None
        if self.calibrate and given:
            raise ValueError(
                "CAPO: calibrate finds the thresholds; leave objective_threshold and policy_threshold out"
            )
        if self.calibrate and not self.symmetric:
            raise ValueError("CAPO: calibrate proposes thresholds for |m_H|; it needs symmetric: true")
        if self.excess == "scale" and not self.symmetric:
            raise ValueError("CAPO: excess: scale has no lower test of its own; it needs symmetric: true")
        for name in ("calibration_holds", "calibration_follows"):
            if getattr(self, name) and not self.calibrate:
                raise ValueError(f"CAPO: {name} has no effect without calibrate; leave it out")
        if not self.calibrate:
            objective, policy = _THRESHOLDS.get(self.base, _THRESHOLDS["grpo"])
            if self.objective_threshold is None:
                object.__setattr__(self, "objective_threshold", objective)
            if self.policy_threshold is None:
                object.__setattr__(self, "policy_threshold", policy)
        if self.optimizer_model == "sgd" and self.cold_start == "adam":
            raise ValueError("CAPO: cold_start has no effect with optimizer_model: sgd; leave it out")
        if len(self.moment_decay) != 2 or not all(0 <= beta < 1 for beta in self.moment_decay):
            raise ValueError(f"CAPO: moment_decay = {tuple(self.moment_decay)} must be two numbers in [0, 1)")

    # What it asks of the rest of a recipe

    def faults(self, run: RunView) -> Iterator[str]:
        most = run.train.max_steps
        if self.calibrate and most is not None and self.calibration_steps >= most - 1:
            yield (
                f"{run.place}: 'calibration_steps' {self.calibration_steps} leaves nothing of train.max_steps {most} "
                "to use it in"
            )

    def warnings(self, run: RunView) -> Iterator[str]:
        train = run.train
        if self.calibrate and not self.calibration_holds and not train.warmup_steps:
            yield (
                f"{run.place}: 'calibrate' lets the first steps at the full learning rate through unguarded; set "
                "calibration_holds: true, or train.warmup_steps"
            )
        taken = {"sgd": train.optim == "sgd", "adam": "adam" in train.optim}
        if not taken[self.optimizer_model]:
            yield (
                f"{run.place}: optimizer_model {self.optimizer_model!r} predicts steps that train.optim "
                f"{train.optim!r} does not take"
            )
        betas = (train.adam_beta1, train.adam_beta2)
        if self.optimizer_model == "adam" and self.moment_decay != betas:
            yield f"{run.place}: moment_decay {self.moment_decay} is not train's adam_beta1, adam_beta2 {betas}"

    @classmethod
    def notes(cls, curves: RunCurves) -> Iterator[Note]:
        yield from run_notes(curves)
        for base in bases_of(cls).values():  # a base's numbers stand under our name
            yield from base.notes(curves)

    # The base, and what it answers for

    @cached_property
    def base_objective(self) -> Objective:
        cls: Any = inner_class(CAPO, self.base)
        known = [f.name for f in fields(cls)]
        for name in self.base_settings or {}:
            if name not in known:
                near = get_close_matches(name, known, 1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(known)}"
                raise ValueError(f"CAPO: base_settings: {cls.__name__} has no setting {name!r}{hint}")
        return cls(**(self.base_settings or {}))

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]  # read from the instance
        return frozenset({"hidden", "candidates"}) | self.base_objective.needs

    @property
    def needs_answers(self) -> bool:
        return self.base_objective.needs_answers

    @property
    def divides_by_tokens(self) -> bool:
        return self.base_objective.divides_by_tokens

    @property
    def observes_step(self) -> bool:
        return self.base_objective.observes_step or self.divides_by_tokens

    @property
    def learns_from_equal(self) -> str | None:
        return self.base_objective.learns_from_equal

    @property
    def refuses_logged(self) -> str | None:
        return self.base_objective.refuses_logged

    @property
    def reads_each_reward(self) -> bool:
        return self.base_objective.reads_each_reward

    @property
    def kl_in_reward(self) -> bool:
        return self.base_objective.kl_in_reward

    @property
    def uses_critic(self) -> bool:
        return self.base_objective.uses_critic

    @property
    def reads_texts(self) -> bool:
        return self.base_objective.reads_texts

    def entropy_loss(self, entropies: Tensor) -> Tensor | None:
        return self.base_objective.entropy_loss(entropies)

    def observe_rewards(self, groups: Groups) -> Groups:
        return self.base_objective.observe_rewards(groups)

    def critic_loss(self, values: Tensor, batch: TokenBatch, totals: StepTotals) -> Tensor:
        return self.base_objective.critic_loss(values, batch, totals)

    def advantages(self, groups: Groups) -> dict[str, Tensor]:
        return self.base_objective.advantages(groups)

    def rollout_metrics(self, groups: Groups) -> dict[str, Tensor]:
        return self.base_objective.rollout_metrics(groups)

    def ratio(self, batch: TokenBatch) -> Tensor:
        return self.base_objective.ratio(batch)

    def effective_advantages(self, batch: TokenBatch) -> Tensor:
        return self.base_objective.effective_advantages(batch)

    def clip_bounds(self, batch: TokenBatch) -> tuple[float | Tensor, float | Tensor] | None:
        return self.base_objective.clip_bounds(batch)

    def token_loss(self, batch: TokenBatch) -> Tensor:  # (B, T)
        losses = self.base_objective.token_loss(batch)
        return losses if self.excess == "reject" else losses * self._weights(batch)

    def reduce(self, losses: Tensor, mask: Tensor, totals: StepTotals) -> Tensor:  # ()
        return self.base_objective.reduce(losses, mask, totals)

    def observe_step(self, batches: Sequence[TokenBatch], all_sum: AllSum) -> dict[str, Any]:
        """The base's statistics over the tokens that are kept."""
        return self.base_objective.observe_step([self._kept(batch) for batch in batches], all_sum)

    # The method

    @cached_property
    def moments(self) -> Moments:
        """The Adam model's moments; unused with the SGD model."""
        decay = (self.moment_decay[0], self.moment_decay[1])
        return Moments(decay=decay, epsilon=self.moment_epsilon, cold_start=self.cold_start)

    @cached_property
    def calibration(self) -> Calibration:
        return Calibration()

    @property
    def thresholds(self) -> tuple[float, float]:
        """(objective, policy) thresholds in force; 0 while calibrating."""
        if self.calibrate:
            return self.calibration.thresholds or (0.0, 0.0)
        return self.objective_threshold or 0.0, self.policy_threshold or 0.0

    def prepare(self, batch: TokenBatch) -> TokenBatch:
        """Adds forward["objective_shift"] and forward["policy_shift"] (B, T). Needs `batch.step`."""
        objective_shift, policy_shift = self._shifts(batch)
        shifts = {"objective_shift": objective_shift, "policy_shift": policy_shift}
        return replace(batch, forward={**batch.forward, **shifts})

    @property
    def calibrating(self) -> bool:
        """Whether the thresholds are still to be found."""
        return self.calibrate and self.calibration.thresholds is None

    def keep(self, batch: TokenBatch) -> Tensor:  # (B, T)
        if self.calibrating and self.calibration_holds:
            return torch.zeros_like(batch.mask, dtype=torch.bool)
        if self.excess == "scale":
            return torch.ones_like(batch.mask, dtype=torch.bool)
        objective_threshold, policy_threshold = self.thresholds
        return keep_tokens(
            *self._shifts(batch),
            objective_threshold=objective_threshold,
            policy_threshold=policy_threshold,
            symmetric=self.symmetric,
        )

    @torch.no_grad()
    def finish_step(self, batches: Sequence[TokenBatch], all_sum: AllSum) -> dict[str, Any]:
        """Moves the Adam model by one meta-step over the kept tokens; counts shifts while calibrating."""
        if not batches:
            raise ValueError("CAPO: finish_step needs the step's micro-batches, to update its moments from")
        batches = [self.prepare(batch) for batch in batches]
        found = self.base_objective.finish_step(batches, all_sum)
        # a cold Adam model plans raw gradients: those shifts say nothing about the ones that follow
        measures = self.optimizer_model == "sgd" or self.moments.acts
        if self.optimizer_model == "adam":
            self.moments.update([self._row_gradients(self._kept(batch)) for batch in batches], all_sum)
        if self.calibrate and measures and (self.calibrating or self.calibration_follows):
            counts = all_sum(torch.stack([self._counts(batch) for batch in batches]).sum(dim=0))
            found |= self._calibrate(counts)
        return found

    def _counts(self, batch: TokenBatch) -> Tensor:
        """Joint histogram of both shifts over the tokens that have an advantage: to reject another changes nothing
        but the divisor. (BINS, BINS)."""
        m_h, m_f = self._shifts(batch)
        measured = (batch.mask > 0) & (self.effective_advantages(batch) != 0) & (m_h + m_f).isfinite()
        return joint_counts(m_h.abs(), m_f, measured)

    def _calibrate(self, counts: Tensor) -> dict[str, Tensor]:
        """What a step's counts make of the thresholds; a step without advantages says nothing."""
        if not bool(counts.any()):
            return {}
        if not self.calibrating:
            return self.calibration.follow(counts, self.target_rejection)
        self.calibration.add(counts)
        if self.calibration.steps < self.calibration_steps:
            return {}
        return self.calibration.propose(self.target_rejection)

    def metrics(self, batch: TokenBatch) -> dict[str, Tensor]:
        """rejected_share (of the loss tokens), rejected_by_{objective,policy} (the same by test), mean and 99
        % quantile of both shifts, uncovered_share (sampled id not among the candidates); and the base's. With
        excess: scale, scaled_... in place of rejected_..., and step_weight_mean."""
        batch = self.prepare(batch)
        loss_tokens = batch.mask > 0
        m_h, m_f = (shift[loss_tokens] for shift in self._shifts(batch))
        objective_threshold, policy_threshold = self.thresholds
        by_objective = ~keep_tokens(
            m_h, m_f, objective_threshold=objective_threshold, policy_threshold=0.0, symmetric=self.symmetric
        )
        by_policy = ~keep_tokens(m_h, m_f, objective_threshold=0.0, policy_threshold=policy_threshold)
        covered = (batch.forward["candidate_ids"] == batch.forward["actions"].unsqueeze(-1)).any(dim=-1)
        done = "rejected" if self.excess == "reject" else "scaled"
        shares = {
            f"{done}_share": by_objective | by_policy,
            f"{done}_by_objective": by_objective,
            f"{done}_by_policy": by_policy,
            "uncovered_share": ~covered[loss_tokens],
            "objective_shift_abs_mean": m_h.abs(),
            "policy_shift_mean": m_f,
        }
        if self.excess == "scale":
            shares["step_weight_mean"] = self._weights(batch)[loss_tokens]
        found = {name: _mean(values) for name, values in shares.items()}
        found |= {
            "objective_shift_abs_q99": _quantile(m_h.abs(), 0.99),
            "policy_shift_q99": _quantile(m_f, 0.99),
        }
        return {**self.base_objective.metrics(self._kept(batch)), **found}

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {"base": self.base_objective.state_dict()}
        if self.optimizer_model == "adam":
            state["moments"] = self.moments.state_dict()
        if self.calibrate:
            state["calibration"] = self.calibration.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        expected = set(self.state_dict())
        if set(state) != expected:
            raise ValueError(
                f"CAPO: the checkpoint holds {sorted(state)}, these settings want {sorted(expected)}; resume with the "
                "optimizer_model and calibrate it was written with"
            )
        self.base_objective.load_state_dict(state["base"])
        if self.optimizer_model == "adam":
            self.moments.load_state_dict(state["moments"])
        if self.calibrate:
            self.calibration.load_state_dict(state["calibration"])

    def _kept(self, batch: TokenBatch) -> TokenBatch:
        """The tokens that pass the tests: all of them while calibrating, whether or not the loss has them."""
        return batch if self.calibrating else replace(batch, mask=batch.mask * self.keep(batch))

    @torch.no_grad()
    def _weights(self, batch: TokenBatch) -> Tensor:
        """How much of each loss token's step fits the thresholds, 1 while they are looked for. (B, T)."""
        objective_threshold, policy_threshold = self.thresholds
        return step_weights(
            *self._shifts(batch), objective_threshold=objective_threshold, policy_threshold=policy_threshold
        )

    @torch.no_grad()
    def _shifts(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """Both shifts of every loss token, 0 elsewhere. (B, T) each."""
        if "policy_shift" in batch.forward:
            return batch.forward["objective_shift"], batch.forward["policy_shift"]
        forward = batch.forward
        chosen = (batch.mask > 0).reshape(-1).nonzero().squeeze(1)
        advantages = self.effective_advantages(batch).expand_as(batch.mask).reshape(-1)
        shifts = candidate_shifts(
            forward["candidate_ids"].flatten(0, 1)[chosen],
            forward["candidate_logits"].flatten(0, 1)[chosen],
            forward["hidden"].flatten(0, 1)[chosen],
            forward["actions"].reshape(-1)[chosen],
            advantages[chosen],
            lr=self._learning_rate(batch),
            moments=self.moments if self.optimizer_model == "adam" else None,
        )
        blank = shifts[0].new_zeros(batch.mask.numel())
        objective_shift, policy_shift = (blank.index_copy(0, chosen, s).view_as(batch.mask) for s in shifts)
        return objective_shift, policy_shift

    def _row_gradients(self, batch: TokenBatch) -> RowGradients:
        """Gradients of the tokens in `batch.mask`, for the moments."""
        forward = batch.forward
        ids = forward["candidate_ids"].flatten(0, 1)
        _, score = candidate_scores(
            ids, forward["candidate_logits"].flatten(0, 1), forward["actions"].reshape(-1)
        )
        advantages = self.effective_advantages(batch).expand_as(batch.mask).reshape(-1, 1)
        work = torch.promote_types(forward["candidate_logits"].dtype, torch.float32)
        if self.excess == "scale":
            advantages = advantages * self._weights(batch).reshape(-1, 1)
        coefficients = (advantages * score).to(work)
        hidden = forward["hidden"].flatten(0, 1)
        # one NaN would stay in the moments for the rest of the run
        finite = coefficients.isfinite().all(dim=1) & hidden.isfinite().all(dim=1)
        return RowGradients(ids, coefficients, hidden, batch.mask.reshape(-1) * finite)

    def _learning_rate(self, batch: TokenBatch) -> float | Tensor:
        # thresholds must hold where the schedule peaks, and warm-up has not been there yet
        name = "peak_learning_rate" if self.calibrating else "learning_rate"
        if name not in batch.step:
            raise ValueError(f"CAPO: TokenBatch.step has no {name!r}; the trainer has to put it there")
        return batch.step[name]


def _mean(values: Tensor) -> Tensor:
    return values.float().sum() / max(1, values.numel())


def _quantile(values: Tensor, level: float) -> Tensor:
    return values.new_zeros(()) if values.numel() == 0 else torch.quantile(values.float(), level)
