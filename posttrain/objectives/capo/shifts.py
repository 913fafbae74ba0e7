"""What a token's own optimizer step is predicted to do, and which tokens that lets stay (CAPO, eq. 7 to 10).

Pure functions of tensors; the method that uses them, and its paper, stand in capo.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from posttrain.objectives.capo.moments import Moments
from posttrain.ops.logprobs import top_candidates


@torch.no_grad()
def predicted_shifts(
    logits: Tensor,
    hidden: Tensor,
    actions: Tensor,
    advantages: Tensor,
    *,
    lr: float | Tensor,
    top_k: int,
    moments: Moments | None = None,
) -> tuple[Tensor, Tensor]:
    """(objective_shift, policy_shift), (N,) each: what a token's own optimizer step would do (eq. 7 to 10).

    logits (N, V) after temperature T, hidden (N, H) the LM head's input over T, so that the head times it is the
    logits; actions (N,) the sampled ids, advantages (N,). `lr` is the learning rate of the LM head's parameter
    group, or the one it would have.
    moments  None: plain SGD, in closed form. Else Adam, each token stepping alone from the shared moments.

    objective_shift  second-order expansion of A (pi'(a) / pi(a) - 1)
    policy_shift     lr^2/2 times the squared score along the step (empirical Fisher); near KL(pi || pi') on
                     average over sampled tokens
    The policy is the softmax over the `top_k` candidates (`ops.logprobs.top_candidates`). What is a number a
    candidate is float64, as the inner products cancel; what also has the hidden size is float32 at least, which
    holds the Adam model's shifts to 1e-5 of themselves at 50 candidates and a hidden size of 512, and to 5e-5 at
    7 and 5, where sums of few terms cancel.

    Raises ValueError where the sizes do not fit, or `top_k` is below 1.
    """
    _check_sizes(logits, hidden, actions, advantages)
    ids, values = top_candidates(logits, actions, top_k)
    return candidate_shifts(ids, values, hidden, actions, advantages, lr=lr, moments=moments)


def candidate_shifts(
    candidate_ids: Tensor,
    candidate_logits: Tensor,
    hidden: Tensor,
    actions: Tensor,
    advantages: Tensor,
    *,
    lr: float | Tensor,
    moments: Moments | None = None,
) -> tuple[Tensor, Tensor]:
    """`predicted_shifts` where the candidates are known: ids and logits (N, K), hidden (N, H), actions,
    advantages (N,)."""
    work = torch.promote_types(candidate_logits.dtype, torch.float32)
    policy, score = candidate_scores(candidate_ids, candidate_logits, actions)
    advantages = advantages.double()
    coefficients = advantages.unsqueeze(1) * score  # the token's gradient is coefficients x hidden, (K, H)
    if moments is None or not moments.acts:
        norms = torch.linalg.vector_norm(hidden, dim=1, keepdim=True, dtype=torch.float64)
        change = coefficients * norms.square()  # u = G h
    else:
        change = moments.logit_change(candidate_ids, coefficients.to(work), hidden).double()
    along = (score * change).sum(dim=1)  # s = v . u, and <G, D> = A s
    mean = (policy * change).sum(dim=1, keepdim=True)
    spread = (policy * (change - mean).square()).sum(dim=1)  # u^T F u
    objective_shift = lr * advantages * along + lr**2 / 2 * advantages * (along.square() - spread)
    return objective_shift.to(work), (lr**2 / 2 * along.square()).to(work)


def _check_sizes(logits: Tensor, hidden: Tensor, actions: Tensor, advantages: Tensor) -> None:
    """ValueError unless (N, V), (N, H), (N,), (N,): other sizes would broadcast."""
    size = len(logits)
    given = {"hidden": hidden, "actions": actions, "advantages": advantages}
    wrong = [name for name, value in given.items() if value.shape[:1] != (size,)]
    wrong += [name for name, value in given.items() if value.dim() != (2 if name == "hidden" else 1)]
    if logits.dim() != 2 or wrong:
        shapes = ", ".join(
            f"{name} {tuple(value.shape)}" for name, value in {"logits": logits, **given}.items()
        )
        raise ValueError(f"predicted_shifts: wants (N, V), (N, H), (N,), (N,); got {shapes}")


def candidate_scores(
    candidate_ids: Tensor, candidate_logits: Tensor, actions: Tensor
) -> tuple[Tensor, Tensor]:
    """Truncated policy pi and score v = e_a - pi over the candidates, (N, K) float64 each.

    Ids and logits (N, K), actions (N,). float64, because for a confident token 1 - pi(a) is the difference of
    two numbers near 1.
    """
    policy = candidate_logits.double().softmax(dim=1)
    return policy, (candidate_ids == actions.unsqueeze(1)).double() - policy


def keep_tokens(
    objective_shift: Tensor,
    policy_shift: Tensor,
    *,
    objective_threshold: float,
    policy_threshold: float,
    symmetric: bool = True,
) -> Tensor:
    """Which tokens stay: |m_H| < tau_H (0 <= m_H < tau_H unless symmetric) and m_F < tau_F. Any shape, bool.

    A threshold of 0 switches its test off. A shift that is NaN fails a test that is on.
    """
    keep = torch.ones_like(objective_shift, dtype=torch.bool)
    if objective_threshold > 0:
        lower = objective_shift > -objective_threshold if symmetric else objective_shift >= 0
        keep = keep & lower & (objective_shift < objective_threshold)
    if policy_threshold > 0:
        keep = keep & (policy_shift < policy_threshold)
    return keep


def step_weights(
    objective_shift: Tensor, policy_shift: Tensor, *, objective_threshold: float, policy_threshold: float
) -> Tensor:
    """How much of a token's step fits the thresholds: min(1, tau_H / |m_H|, sqrt(tau_F / m_F)). Any shape. Ours.

    A step of w times the length shifts the policy by w^2 m_F and, to first order, the objective by w m_H: so a token
    over a threshold comes to lie on it. A threshold of 0 asks for nothing; a shift that is NaN gets weight 0.
    """
    weights = torch.ones_like(objective_shift)
    if objective_threshold > 0:
        weights = torch.minimum(weights, objective_threshold / objective_shift.abs())
    if policy_threshold > 0:
        weights = torch.minimum(weights, (policy_threshold / policy_shift).sqrt())
    return weights.nan_to_num(0.0)
