"""Likelihoods of a masked-diffusion model: noise as data, the ELBO's terms, its exact value by enumeration.

A mask predictor p(y_i | y with some tokens masked, prompt) gives no log-likelihood directly. It gives a
bound: hide a random part M of the completion and weigh what is predicted there,

    l = weight(M) * sum_{i in M} log p(y_i | y \\ M, prompt),        E[l] = B(y | prompt) <= log p(y | prompt)

(LLaDA, https://arxiv.org/abs/2502.09992, eq. 3 and 5; MDLM, https://arxiv.org/abs/2406.07524). The designs
below draw M and its weight so that the mean is unbiased for B (all but `coupled` and `full`, which estimate
something else on purpose and say so).

Shapes: B completions, n forward passes a completion, P prompt tokens, L completion tokens, S = P + L, V
vocabulary. The masks are drawn once and stored with the sample, so that the policy, the old policy and the
reference are compared on the same hidden tokens. Masks are boolean and stay so: whether a token is hidden is
never read off the ids, since a mask id inside a prompt would then count as hidden.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from math import comb

import torch
from torch import Tensor
from torch.nn.functional import pad

LogitsFn = Callable[[Tensor], Tensor]
"""Maps ids (B, S) to logits (B, S, V), where row i predicts the token at position i."""

EXACT_LIMIT = 12
"""Longest completion `exact_elbo` enumerates: 2^12 forward passes a completion."""


@dataclass(frozen=True)
class Noise:
    """Which tokens are hidden in each forward pass, and what that pass weighs.

    masks         (B, n, L)  bool, True = hidden; only ever True on completion tokens that are scored
    weights       (B, n)     the pass's weight: 1/t, L/k, ...; 0 where a row has nothing to score
    prompt_masks  (B, n, P)  bool, prompt tokens hidden as well (diffu-GRPO), or None; they are never scored
    """

    masks: Tensor
    weights: Tensor
    prompt_masks: Tensor | None = None

    @property
    def num_passes(self) -> int:
        return self.masks.shape[1]

    def passes(self, start: int, stop: int) -> Noise:
        """The passes start..stop-1 alone."""
        prompt = None if self.prompt_masks is None else self.prompt_masks[:, start:stop]
        return Noise(self.masks[:, start:stop], self.weights[:, start:stop], prompt)

    @staticmethod
    def from_times(times: Tensor, masks: Tensor) -> Noise:
        """Noise with given times and hidden tokens, weight 1/t. times (B, n) in (0, 1], masks (B, n, L)."""
        if times.shape != masks.shape[:2]:
            raise ValueError(
                f"times {tuple(times.shape)} must match the first two axes of {tuple(masks.shape)}"
            )
        return Noise(masks.bool(), 1 / times)


def _uniform(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    # float64: with 24 bits, floor(u * L) and ties between keys would be visibly uneven on long completions
    return torch.rand(shape, dtype=torch.float64, device=like.device, generator=generator)


def _random_subset(scored: Tensor, size: Tensor, generator: torch.Generator | None) -> Tensor:
    """A uniform subset of `size` (B, n) of each row's scored tokens (B, L). (B, n, L) bool."""
    keys = _uniform((*size.shape, scored.shape[1]), scored, generator)
    keys = keys.masked_fill(~scored[:, None], 2.0)  # behind every scored token
    rank = keys.argsort(dim=-1).argsort(dim=-1)
    return (rank < size[..., None]) & scored[:, None]


def bernoulli_noise(
    scored: Tensor, n: int, generator: torch.Generator | None = None, *, floor: float = 1e-3
) -> Noise:
    """t ~ U[floor, 1] a pass, each token hidden with probability t, weight 1/t. scored (B, L) bool.

    LLaDA's training noise and BGPO's (its section 3.1). Without the floor the estimator's variance is
    infinite, the integral of 1/t; with it the mean is off by less than `floor` of a term. A pass that hides
    nothing is a legitimate sample and contributes 0: drawing it again would bias the mean.
    """
    if not 0 <= floor < 1:
        raise ValueError(f"floor must lie in [0, 1), not {floor}")
    times = 1 - (1 - floor) * _uniform((scored.shape[0], n), scored, generator)  # (floor, 1]: never exactly 0
    masks = _uniform((*times.shape, scored.shape[1]), scored, generator) < times[..., None]
    return Noise(masks & scored[:, None], (1 / times).float())


def count_noise(scored: Tensor, n: int, generator: torch.Generator | None = None) -> Noise:
    """k hidden tokens a pass, a uniform k-subset, weight L/k. scored (B, L) bool.

    The n counts of a row are spread evenly over 1..L, as in LLaDA's likelihood evaluation:
    k_j = ((k0 + round(j L/n) - 1) mod L) + 1 with one k0 uniform in 1..L, so that each k_j alone is uniform.
    Halves are rounded up: rounding k0 + j L/n half to even, as `torch.round` does, makes some counts twice as
    likely as others and the mean biased.
    """
    length = scored.sum(-1, keepdim=True)  # (B, 1)
    safe = length.clamp(min=1)
    first = (_uniform((scored.shape[0], 1), scored, generator) * safe).long() + 1  # k0
    step = torch.arange(n, device=scored.device)[None]
    rounded = (2 * step * safe + n) // (2 * n)  # round(j L / n), halves up, in integers
    counts = (first + rounded - 1) % safe + 1
    counts = torch.where(length > 0, counts, 0)
    return Noise(_random_subset(scored, counts, generator), length / counts.clamp(min=1))


def complementary_noise(scored: Tensor, n: int, generator: torch.Generator | None = None) -> Noise:
    """Pairs of a random subset and its complement. scored (B, L) bool.

    ESPO, https://arxiv.org/abs/2512.03759. k ~ U{0..L} tokens are hidden with weight (L+1)/k, then the other
    L-k with weight (L+1)/(L-k); the pass that hides nothing weighs 0. Passes 2j and 2j+1 are a pair, so n is
    even. Unbiased for B.
    """
    pairs = _groups_of(2, n, "complementary")
    length = scored.sum(-1, keepdim=True)
    counts = (_uniform((scored.shape[0], pairs), scored, generator) * (length + 1)).long()
    masks = _random_subset(scored, counts, generator)
    both = torch.stack([masks, scored[:, None] & ~masks], dim=2).flatten(1, 2)  # (B, n, L)
    hidden = both.sum(-1)
    return Noise(both, torch.where(hidden > 0, (length + 1) / hidden.clamp(min=1), 0.0))


def full_noise(scored: Tensor, n: int, generator: torch.Generator | None = None) -> Noise:
    """Everything hidden, weight 1 (diffu-GRPO, https://arxiv.org/abs/2504.12216). scored (B, L) bool.

    Not an ELBO: each token is predicted from the prompt alone. Passes differ only by `hide_prompt`.
    """
    weights = torch.ones(scored.shape[0], n, device=scored.device)
    return Noise(scored[:, None].expand(-1, n, -1).clone(), weights)


def coupled_noise(
    scored: Tensor,
    n: int,
    generator: torch.Generator | None = None,
    *,
    low: float = 0.2,
    high: float = 0.8,
) -> Noise:
    """Triples of full mask, random mask and its complement (DiffuCoder, https://arxiv.org/abs/2506.20639).

    t ~ U(low, high); weights 3/2, 3/(2t), 3/(2(1-t)), so that the mean over a triple is
    (full + [hidden ? a/t : b/(1-t)]) / 2 a token. Its expectation is 1.5 times an ordinary log-prob, as
    published: clip ranges do not carry over to other designs. n must be a multiple of 3. scored (B, L) bool.
    """
    triples = _groups_of(3, n, "coupled")
    if not 0 < low <= high < 1:
        raise ValueError(f"low and high must satisfy 0 < low <= high < 1, not {low} and {high}")
    times = low + (high - low) * _uniform((scored.shape[0], triples), scored, generator)
    hidden = _uniform((*times.shape, scored.shape[1]), scored, generator) < times[..., None]
    row = scored[:, None].expand_as(hidden)
    masks = torch.stack([row, row & hidden, row & ~hidden], dim=2).flatten(1, 2)
    weights = 1.5 * torch.stack([torch.ones_like(times), 1 / times, 1 / (1 - times)], dim=2).flatten(1, 2)
    return Noise(masks, weights.float())


def hide_prompt(
    noise: Noise, present: Tensor, share: float, generator: torch.Generator | None = None
) -> Noise:
    """Each prompt token hidden as well with probability `share`, anew a pass. present (B, P) bool."""
    shape = (present.shape[0], noise.num_passes, present.shape[1])
    hidden = (_uniform(shape, present, generator) < share) & present[:, None]
    return Noise(noise.masks, noise.weights, hidden)


def _groups_of(size: int, n: int, design: str) -> int:
    if n % size:
        raise ValueError(
            f"{design} noise comes in groups of {size} forward passes: {n} is no multiple of {size}"
        )
    return n // size


NOISE: dict[str, Callable[..., Noise]] = {
    "bernoulli": bernoulli_noise,
    "count": count_noise,
    "complementary": complementary_noise,
    "full": full_noise,
    "coupled": coupled_noise,
}


def sample_noise(
    design: str,
    scored: Tensor | tuple[int, int],
    n: int,
    *,
    generator: torch.Generator | None = None,
    **settings: float,
) -> Noise:
    """Draws the noise of n forward passes.

    design     a name in `NOISE`: bernoulli, count, complementary, full, coupled
    scored     (B, L) bool, the completion tokens that count (no padding), or (B, L) sizes: all of them
    generator  on the tensors' device; nothing else is drawn from, so that the process's own state never moves
    settings   the design's own: `floor` (bernoulli), `low` and `high` (coupled)
    """
    if design not in NOISE:
        raise ValueError(f"no noise design {design!r}; choose one of {', '.join(sorted(NOISE))}")
    if n < 1:
        raise ValueError(f"noise needs at least one forward pass, not {n}")
    if not isinstance(scored, Tensor):
        device = None if generator is None else generator.device
        scored = torch.ones(scored, dtype=torch.bool, device=device)
    return NOISE[design](scored.bool(), n, generator, **settings)


def hide(tokens: Tensor, hidden: Tensor, mask_id: int) -> Tensor:
    """The ids with the hidden ones replaced by the mask. (B, S), (B, S) bool -> (B, S)."""
    return torch.where(hidden, mask_id, tokens)


def token_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """log p of the given tokens, in at least float32. (B, S, V), (B, S) -> (B, S)."""
    # float32: a bfloat16 log-softmax is off by .01 a token, and the sum multiplies that by length and 1/t
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    picked = logits.gather(-1, tokens[..., None]).squeeze(-1)
    return picked - logits.logsumexp(-1)


def _hidden_logprobs(logits: Tensor, tokens: Tensor, hidden: Tensor) -> Tensor:
    """`token_logprobs` where `hidden` (B, L), 0 elsewhere: a softmax over the vocabulary for those positions alone."""
    found = token_logprobs(logits[hidden], tokens[hidden])
    return found.new_zeros(hidden.shape).masked_scatter(hidden, found)


def masked_logprobs(
    logits_fn: LogitsFn,
    tokens: Tensor,
    prompt_length: int | Tensor,
    noise: Noise,
    *,
    mask_id: int,
    completion_only: bool = False,
) -> Tensor:
    """Weighted log-probs of the hidden tokens of the noise's single pass, 0 elsewhere. (B, L).

    completion_only  `logits_fn` gives the logits of the completion's L columns alone; prompt_length is one number then

    Summed over tokens it is that pass's ELBO term; kept a token it is what token-level objectives
    (diffu-GRPO, coupled-GRPO) compare. Differentiable through `logits_fn`.
    """
    if noise.num_passes != 1:
        raise ValueError(f"masked_logprobs takes one pass at a time, not {noise.num_passes}")
    batch, width = tokens.shape
    length = noise.masks.shape[-1]
    start = torch.as_tensor(prompt_length, device=tokens.device).reshape(-1, 1)
    positions = start + torch.arange(length, device=tokens.device)  # (1 or B, L): where the completion stands
    mask = noise.masks[:, 0] & (positions < width)
    place = torch.arange(width, device=tokens.device) - start  # (1 or B, S): its inverse
    hidden = mask.gather(1, place.clamp(0, length - 1).expand(batch, -1)) & (place >= 0) & (place < length)
    if noise.prompt_masks is not None:
        hidden = hidden | pad(noise.prompt_masks[:, 0], (0, width - noise.prompt_masks.shape[-1]))
    logits = logits_fn(hide(tokens, hidden, mask_id))
    if isinstance(prompt_length, int):  # one slice: no copy of the prompt's logits in float32
        part = slice(prompt_length, prompt_length + length)
        logprobs = _hidden_logprobs(logits if completion_only else logits[:, part], tokens[:, part], mask)
    else:
        logprobs = token_logprobs(logits, tokens).gather(1, positions.clamp(max=width - 1).expand(batch, -1))
    return torch.where(mask, logprobs, 0) * noise.weights[:, :1].to(logprobs.dtype)


def elbo_terms(
    logits_fn: LogitsFn, tokens: Tensor, prompt_length: int | Tensor, noise: Noise, *, mask_id: int
) -> Tensor:
    """l of each forward pass: its weight times the summed log-probs of its hidden tokens. (B, n), each <= 0.

    The mean over n estimates B(y | x). tokens (B, S) hold prompt and completion; the completion starts at
    `prompt_length`, one number or one a row (B,). With gradient, one backward per pass needs memory for one
    pass only: call it on `noise.passes(j, j + 1)`.
    """
    terms = [
        masked_logprobs(logits_fn, tokens, prompt_length, noise.passes(j, j + 1), mask_id=mask_id).sum(-1)
        for j in range(noise.num_passes)
    ]
    return torch.stack(terms, dim=1)


def exact_elbo(logits_fn: LogitsFn, tokens: Tensor, prompt_length: int | Tensor, *, mask_id: int) -> Tensor:
    """B(y | x) itself, by enumeration of every non-empty set of hidden tokens. (B,). For tests: 2^L passes.

        B = sum_M [1 / (|M| C(L, |M|))] sum_{i in M} log p(y_i | y \\ M, x)

    The average over unmasking orders of the chain-rule log-likelihood; equal to log p(y | x) when the
    predictor's conditionals come from one joint distribution. A (B,) prompt_length is evaluated row by row.
    """
    if isinstance(prompt_length, Tensor) and prompt_length.dim() > 0:
        rows = [
            exact_elbo(logits_fn, tokens[b : b + 1], int(start), mask_id=mask_id)
            for b, start in enumerate(prompt_length.tolist())
        ]
        return torch.cat(rows)
    length = tokens.shape[1] - int(prompt_length)
    if not 1 <= length <= EXACT_LIMIT:
        raise ValueError(f"exact_elbo enumerates 1 to {EXACT_LIMIT} completion tokens, not {length}")
    subsets = [s for k in range(1, length + 1) for s in combinations(range(length), k)]
    masks = torch.zeros(len(subsets), length, dtype=torch.bool, device=tokens.device)
    for row, subset in enumerate(subsets):
        masks[row, list(subset)] = True
    weights = torch.tensor(
        [1 / (len(s) * comb(length, len(s))) for s in subsets], dtype=torch.float64, device=tokens.device
    )
    batch = tokens.shape[0]
    noise = Noise(masks.expand(batch, -1, -1), weights.expand(batch, -1))
    return elbo_terms(logits_fn, tokens, prompt_length, noise, mask_id=mask_id).sum(-1)
