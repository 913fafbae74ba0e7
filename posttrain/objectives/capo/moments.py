"""Adam moments of the LM head's rows, kept on the scale of one token's gradient (CAPO's optimizer model).

Shapes: N tokens, K candidate ids per token, H hidden size, R rows. The gradient of row id i from one token is a
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

CPU_CHUNK = 1 << 18
DEVICE_CHUNK = 1 << 25
"""Numbers in one (tokens, K, H) work tensor: on a CPU what its cache holds, elsewhere 128 MiB in float32,
large enough that starting the kernels does not count."""


class RowGradients(NamedTuple):
    """Gradients of a micro-batch's tokens with respect to LM-head rows: row ids[n, k] gets coefficients[n, k]
    * hidden[n]. `weights` (N,) is 1 where the token counts and 0 where it does not."""

    ids: Tensor
    coefficients: Tensor
    hidden: Tensor
    weights: Tensor


class Moments:
    """First and second moments of the rows seen so far; a row never seen reads as zero.

    Rows live in a table that grows, with row 0 all zeros for what was never seen. `step` counts the updates made.

    cold_start  before the first update: "raw" plans the gradient itself (as released), "adam" an Adam step from zero
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
        # id -> row of the table; (MAX_ROWS,) once there are rows
        self._slots = torch.zeros(1, dtype=torch.long)
        self._first = self._second = torch.zeros(1, 0)  # (table rows, H)
        self._used = 1

    @property
    def acts(self) -> bool:
        """Whether a planned step differs from the gradient."""
        return self.step > 0 or self.cold_start == "adam"

    def logit_change(self, ids: Tensor, coefficients: Tensor, hidden: Tensor) -> Tensor:
        """Change of the candidates' logits a unit of learning rate, if each token alone were stepped on. Read only.

        (N, K), (N, K), (N, H) -> (N, K): u = D h, with D the bias-corrected Adam step of that token's gradient.
        """
        hidden = hidden.to(coefficients.dtype)
        self._place(hidden)
        size = min(_chunk_tokens(ids, hidden), max(1, len(ids)))
        # on a CPU, a fresh work tensor a chunk costs more (page faults) than the arithmetic in it
        first, second = (hidden.new_empty(size * ids.size(1), hidden.size(1)) for _ in range(2))
        change = torch.empty_like(coefficients)
        for start in range(0, len(ids), size):
            part = slice(start, start + size)
            room = ids[part].numel()
            self._chunk_change(
                ids[part], coefficients[part], hidden[part], change[part], first[:room], second[:room]
            )
        return change

    def update(self, gradients: Sequence[RowGradients], all_sum: Callable[[Tensor], Tensor]) -> None:
        """One meta-step from all micro-batches of an optimizer step; the same on all ranks.

        Each row's gradient is the mean over the counted tokens whose candidates include it. Rows touched by
        none stay as they are, while `step` advances.
        """
        counts = _row_counts(gradients)
        counts = all_sum(counts)
        touched = counts.nonzero().squeeze(1)
        means = all_sum(_row_sums(gradients, touched)).div_(counts[touched].unsqueeze(1))
        self._place(means)
        rows = self._rows_for(touched, means)
        beta1, beta2 = self.decay
        size = _chunk_rows(means)
        for some, mean in zip(rows.split(size), means.split(size), strict=True):
            self._first[some] = self._first[some].lerp_(mean, 1 - beta1)
            self._second[some] = self._second[some].mul_(beta2).addcmul_(mean, mean, value=1 - beta2)
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

    def _chunk_change(
        self,
        ids: Tensor,
        coefficients: Tensor,
        hidden: Tensor,
        change: Tensor,
        first: Tensor,
        second: Tensor,
    ) -> None:
        """Fills `change` (n, K); `first` and `second` (n K, H) are room to work in."""
        self._read(ids, first, second)
        shape = (*ids.shape, hidden.size(1))
        first, second = first.view(shape), second.view(shape)
        beta1, beta2 = self.decay
        count = self.step + 1
        # In place, and bias correction moved to where it costs a number instead of a pass over (chunk, K, H).
        correction1, correction2 = 1 - beta1**count, (1 - beta2**count) ** 0.5
        squares = (coefficients.square().unsqueeze(2), hidden.square().unsqueeze(1))
        second.mul_(beta2).addcmul_(*squares, value=1 - beta2).sqrt_().add_(self.epsilon * correction2)
        gradient = (coefficients.unsqueeze(2), hidden.unsqueeze(1))
        planned = first.mul_(beta1).addcmul_(*gradient, value=1 - beta1).div_(second)
        torch.bmm(planned, hidden.unsqueeze(2), out=change.unsqueeze(2))
        change.mul_(correction2 / correction1)

    def _read(self, ids: Tensor, first: Tensor, second: Tensor) -> None:
        """Copies the rows' moments of ids (n, K) into (n K, H) each."""
        if self._used == 1:
            first.zero_()
            second.zero_()
            return
        rows = self._slots[ids.reshape(-1)]
        torch.index_select(self._first, 0, rows, out=first)
        torch.index_select(self._second, 0, rows, out=second)

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
    """Summed gradient of each touched row over the counted tokens. (R, H)."""
    sums = gradients[0].coefficients.new_zeros(len(touched), gradients[0].hidden.size(1))
    position = torch.zeros(MAX_ROWS, dtype=torch.long, device=touched.device)
    position[touched] = torch.arange(len(touched), device=touched.device)
    for ids, coefficients, hidden, weights in gradients:
        size = _chunk_tokens(ids, hidden)
        work = sums.new_empty(size, ids.size(1), hidden.size(1))
        for tokens in weights.nonzero().squeeze(1).split(size):
            states = hidden[tokens].to(sums.dtype).unsqueeze(1)
            gradient = work[: len(tokens)]  # (chunk, K, H)
            torch.mul(coefficients[tokens].unsqueeze(2), states, out=gradient)
            sums.index_add_(0, position[ids[tokens].reshape(-1)], gradient.flatten(0, 1))
    return sums


def _chunk_tokens(ids: Tensor, hidden: Tensor) -> int:
    return max(1, _chunk_elements(hidden) // (ids.size(1) * hidden.size(1)))


def _chunk_rows(means: Tensor) -> int:
    return max(1, _chunk_elements(means) // means.size(1))


def _chunk_elements(like: Tensor) -> int:
    return CPU_CHUNK if like.device.type == "cpu" else DEVICE_CHUNK
