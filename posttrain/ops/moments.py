"""Adam moments of the LM head's rows, kept on the scale of one token's gradient (CAPO's optimizer model).

Shapes: N tokens, K candidate ids a token, H hidden size, R rows. The gradient of row id i from one token is a
number times the token's hidden state, so a batch of gradients is (ids, coefficients, hidden), and (N, K, H)
is never built.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

MAX_ROWS = 1 << 20
"""Largest vocabulary served. Fixed, so that all ranks can sum the rows' counts without agreeing on a size
first."""

CHUNK_ELEMENTS = 1 << 24
"""Numbers in one (tokens, K, H) work tensor: 64 MiB in float32, and a few of them exist at once."""


class RowGradients(NamedTuple):
    """Gradients of a micro-batch's tokens with respect to LM-head rows: row ids[n, k] gets coefficients[n, k]
    * hidden[n]. `weights` (N,) is 1 where the token counts and 0 where it does not."""

    ids: Tensor
    coefficients: Tensor
    hidden: Tensor
    weights: Tensor


class Moments:
    """First and second moments of the rows seen so far; a row never seen reads as zero.

    Rows live in a table that grows, with row 0 all zeros for what was never seen. `step` counts the updates
    made.
    cold_start  before the first update: "raw" plans the gradient itself (as released), "adam" an Adam step
                from zero
    """

    def __init__(
        self,
        *,
        decay: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
        cold_start: Literal["raw", "adam"] = "raw",
    ) -> None:
        self.decay = decay
        self.epsilon = epsilon
        self.cold_start = cold_start
        self.step = 0
        self._slots = torch.zeros(
            1, dtype=torch.long
        )  # (MAX_ROWS,) once there are rows: id -> row of the table
        self._first = self._second = torch.zeros(1, 0)  # (table rows, H)
        self._used = 1

    @property
    def acts(self) -> bool:
        """Whether a planned step differs from the gradient."""
        return self.step > 0 or self.cold_start == "adam"

    def logit_change(self, ids: Tensor, coefficients: Tensor, hidden: Tensor) -> Tensor:
        """Change of the candidates' logits a unit of learning rate, if each token alone were stepped on. Read
        only.

        (N, K), (N, K), (N, H) -> (N, K): u = D h, with D the bias-corrected Adam step of that token's
        gradient.
        """
        size = max(1, CHUNK_ELEMENTS // (ids.size(1) * hidden.size(1)))
        parts = zip(ids.split(size), coefficients.split(size), hidden.split(size), strict=True)
        return torch.cat([self._chunk_change(*part) for part in parts])

    def update(self, gradients: Sequence[RowGradients], all_sum: Callable[[Tensor], Tensor]) -> None:
        """One meta-step from all micro-batches of an optimizer step; the same on all ranks.

        Each row's gradient is the mean over the counted tokens whose candidates include it. Rows touched by
        none stay as they are, while `step` advances.
        """
        counts = _row_counts(gradients)
        counts = all_sum(counts)
        touched = counts.nonzero().squeeze(1)
        means = all_sum(_row_sums(gradients, touched)) / counts[touched].unsqueeze(1)
        self._place(means)
        rows = self._rows_for(touched, means)
        beta1, beta2 = self.decay
        self._first[rows] = self._first[rows].lerp(means, 1 - beta1)
        self._second[rows] = self._second[rows].lerp(means.square(), 1 - beta2)
        self.step += 1

    def state_dict(self) -> dict[str, Any]:
        """step, ids (R,), first (R, H), second (R, H); rows in the order of their ids, the same on all
        ranks."""
        ids = self._slots.nonzero().squeeze(1)
        rows = self._slots[ids]
        return {"step": self.step, "ids": ids, "first": self._first[rows], "second": self._second[rows]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        ids, first, second = state["ids"], state["first"], state["second"]
        self.step = int(state["step"])
        self._slots = torch.zeros(MAX_ROWS if len(ids) else 1, dtype=torch.long, device=ids.device)
        self._slots[ids] = torch.arange(1, len(ids) + 1, device=ids.device)
        self._first = torch.cat([first.new_zeros(1, first.size(1)), first])
        self._second = torch.cat([second.new_zeros(1, second.size(1)), second])
        self._used = len(ids) + 1

    def _chunk_change(self, ids: Tensor, coefficients: Tensor, hidden: Tensor) -> Tensor:
        hidden = hidden.to(coefficients.dtype)
        gradient = coefficients.unsqueeze(2) * hidden.unsqueeze(1)  # (chunk, K, H)
        first, second = self._read(ids, gradient)
        beta1, beta2 = self.decay
        count = self.step + 1
        first = first.lerp(gradient, 1 - beta1).div_(1 - beta1**count)
        second = second.lerp(gradient.square(), 1 - beta2).div_(1 - beta2**count)
        planned = first.div_(second.sqrt_().add_(self.epsilon))
        return torch.einsum("nkh,nh->nk", planned, hidden)

    def _read(self, ids: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        self._place(like)
        if self._used == 1:
            return torch.zeros_like(like), torch.zeros_like(like)
        rows = self._slots[ids]
        return self._first[rows], self._second[rows]

    def _place(self, like: Tensor) -> None:
        """A restored table starts on the CPU and follows its first use."""
        if self._first.device != like.device or self._first.dtype != like.dtype:
            self._slots = self._slots.to(like.device)
            self._first, self._second = self._first.to(like), self._second.to(like)

    def _rows_for(self, ids: Tensor, like: Tensor) -> Tensor:
        """Rows of the table for these ids, made where there are none. (n,) -> (n,)."""
        if self._used == 1:
            self._slots = torch.zeros(MAX_ROWS, dtype=torch.long, device=like.device)
            self._first, self._second = like.new_zeros(1, like.size(1)), like.new_zeros(1, like.size(1))
        new = ids[self._slots[ids] == 0]
        needed = self._used + len(new)
        missing = needed - len(self._first)
        if missing > 0:
            room = self._first.new_zeros(max(missing, len(self._first) // 4), self._first.size(1))
            self._first, self._second = torch.cat([self._first, room]), torch.cat([self._second, room])
        self._slots[new] = torch.arange(self._used, needed, device=new.device)
        self._used = needed
        return self._slots[ids]


def _row_counts(gradients: Sequence[RowGradients]) -> Tensor:
    """How many counted tokens have each id among their candidates. (MAX_ROWS,)."""
    counts = gradients[0].coefficients.new_zeros(MAX_ROWS)
    for gradient in gradients:
        weights = gradient.weights.to(counts).unsqueeze(1).expand_as(gradient.ids)
        counts.index_add_(0, gradient.ids.reshape(-1), weights.reshape(-1))
    return counts


def _row_sums(gradients: Sequence[RowGradients], touched: Tensor) -> Tensor:
    """Summed gradient of each touched row. (R, H)."""
    hidden_size = gradients[0].hidden.size(1)
    sums = gradients[0].coefficients.new_zeros(len(touched), hidden_size)
    position = torch.zeros(MAX_ROWS, dtype=torch.long, device=touched.device)
    position[touched] = torch.arange(len(touched), device=touched.device)
    for ids, coefficients, hidden, weights in gradients:
        values = (coefficients * weights.unsqueeze(1)).reshape(-1)
        tokens = torch.arange(len(ids), device=ids.device).unsqueeze(1).expand_as(ids).reshape(-1)
        counted = values != 0  # an id that only dropped tokens have is no touched row, and has no position
        index = torch.stack([position[ids.reshape(-1)], tokens])[:, counted]
        shape = (len(touched), len(ids))
        matrix = torch.sparse_coo_tensor(index, values[counted], shape, check_invariants=False)
        sums += torch.sparse.mm(matrix, hidden.to(sums.dtype))
    return sums
