"""Generation with the model in training itself, in this process: no second copy, no sync, no other package.

Against `model.generate`: equal prompts are read once, rows that have ended leave the batch, the log-prob of each
token comes out with it, and row i draws from its own seed, so that a completion does not depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from posttrain.process.phases import PHASES, Open
from posttrain.rollout.base import Completion, NamedTensors, Sampling, rows
from posttrain.rollout.checksum import dtype_name, signature

_LEAVE_SHARE = (
    0.125  # rows are taken out of the cache once this share of them has ended: each removal copies it
)


@dataclass
class _Batch:
    """The rows still being written. R rows, L cached positions, V vocabulary."""

    index: Tensor  # (R,) which row of the call each one is
    logits: Tensor  # (R, V) of the next token
    mask: Tensor  # (R, L)
    cache: Any
    ended: Tensor  # (R,) bool


class TransformersEngine:
    """`generating` yields the model to run, ready to be called on this rank (gathered, unwrapped).

    any_rank  whether a flag is true on any rank: where the weights are sharded each forward is a collective, so a
              rank that is done keeps stepping until all are
    max_rows  rows written at a time; bounds the cache
    """

    name = "transformers"
    shared = False
    shares_weights = True
    looks_ahead = False

    def __init__(
        self,
        generating: Callable[[], AbstractContextManager[nn.Module]],
        *,
        pad_token_id: int,
        dtype: torch.dtype = torch.float32,
        any_rank: Callable[[bool], bool] | None = None,
        max_rows: int = 256,
    ) -> None:
        self._generating = generating
        self._pad = pad_token_id
        self._any_rank = any_rank
        self._max_rows = max_rows
        self.dtype = dtype_name(dtype)
        self.version: int | None = None

    @classmethod
    def of(cls, model: nn.Module, *, pad_token_id: int, **options: Any) -> TransformersEngine:
        """Around a model that this process holds whole."""

        @contextmanager
        def generating() -> Iterator[nn.Module]:
            yield model

        return cls(generating, pad_token_id=pad_token_id, dtype=next(model.parameters()).dtype, **options)

    @torch.no_grad()
    def generate(self, prompts: list[list[int]], sampling: Sampling | Sequence[Sampling]) -> list[Completion]:
        wanted = rows(prompts, sampling)
        done: list[Completion] = []
        with (
            PHASES.within("generating", len(wanted)) as phase,
            self._generating() as model,
            _evaluating(model),
        ):
            while self._goes_on(len(done) < len(wanted)):
                part = wanted[len(done) : len(done) + self._max_rows]
                # A rank with nothing left still steps with the others, on a row that nobody reads.
                writing = _Writing(model, part or wanted[:1], self._pad, self._goes_on, self.version or 0)
                done += writing.run(phase, len(done))[: len(part)]
        return done

    def _goes_on(self, here: bool) -> bool:
        return here if self._any_rank is None else self._any_rank(here)

    def update_weights(self, named_tensors: NamedTensors, version: int) -> None:
        """The weights are the trainer's own; only their version is noted. `named_tensors` is still consumed,
        because gathering them may be a collective."""
        for _ in named_tensors:
            pass
        self.version = version

    def weight_checksums(self) -> Mapping[str, tuple[str, int]]:
        with self._generating() as model:
            return {name: signature(tensor) for name, tensor in model.named_parameters()}

    def health(self) -> None:
        return None

    def close(self) -> None:
        return None


class _Writing:
    """One part of a call, from reading its prompts to its completions."""

    def __init__(
        self,
        model: nn.Module,
        wanted: Sequence[tuple[list[int], Sampling]],
        pad: int,
        goes_on: Callable[[bool], bool],
        version: int,
    ) -> None:
        self.model, self.wanted, self.pad, self.goes_on, self.version = model, wanted, pad, goes_on, version
        self.device = next(model.parameters()).device
        self.tokens: list[list[int]] = [[] for _ in wanted]
        self.logprobs: list[list[float]] = [[] for _ in wanted]
        self.draws = _uniform_draws([one for _, one in wanted]).to(self.device)
        self.writing = len(wanted)  # rows that have not ended
        self.sampler = _Sampler([one for _, one in wanted], self.device)

    def run(self, phase: Open, done_before: int) -> list[Completion]:
        phase.at(done_before, "reading prompts")
        batch = self._read_prompts()
        limits = torch.tensor([one.max_new_tokens for _, one in self.wanted], device=self.device)
        stops = _stop_table([one.stop_token_ids for _, one in self.wanted], self.device)
        seen = self._seen_tokens(batch.logits.size(-1))
        longest = max(one.max_new_tokens for _, one in self.wanted)
        step = 0
        while True:
            index = batch.index
            draws = self.draws[index, min(step, self.draws.size(1) - 1)]
            chosen, logprobs = self.sampler.choose(batch.logits, index, draws, seen)
            self._note(batch, chosen, logprobs)
            if seen is not None:
                seen[index, chosen] = True
            batch.ended |= (stops[index] == chosen.unsqueeze(1)).any(1) | (limits[index] <= step + 1)
            step += 1
            phase.at(done_before + len(self.wanted) - self.writing, f"token {step} of at most {longest}")
            if not self.goes_on(not bool(batch.ended.all())):
                break
            batch = self._forward(batch, chosen)
        return [self._completion(i, stops[i]) for i in range(len(self.wanted))]

    def _note(self, batch: _Batch, chosen: Tensor, logprobs: Tensor) -> None:
        ended = batch.ended.tolist()
        self.writing = len(ended) - sum(ended)
        for row, token, value, over in zip(
            batch.index.tolist(), chosen.tolist(), logprobs.tolist(), ended, strict=True
        ):
            if not over:
                self.tokens[row].append(token)
                self.logprobs[row].append(value)

    def _completion(self, row: int, stops: Tensor) -> Completion:
        tokens = self.tokens[row]
        finish = "stop" if tokens[-1] in stops.tolist() else "length"
        return Completion(tokens, self.logprobs[row], finish, ((self.version, len(tokens)),))

    def _read_prompts(self) -> _Batch:
        """One forward over the distinct prompts, left-padded; then a row of the cache for each completion."""
        distinct: dict[tuple[int, ...], int] = {}
        of_row = [distinct.setdefault(tuple(prompt), len(distinct)) for prompt, _ in self.wanted]
        width = max(len(prompt) for prompt in distinct)
        ids = torch.full((len(distinct), width), self.pad, device=self.device)
        mask = torch.zeros_like(ids)
        for prompt, i in distinct.items():
            ids[i, width - len(prompt) :] = torch.tensor(prompt, device=self.device)
            mask[i, width - len(prompt) :] = 1
        out = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            use_cache=True,  # the model makes the kind of cache it needs
            logits_to_keep=1,
        )
        rows_of = torch.tensor(of_row, device=self.device)
        out.past_key_values.batch_select_indices(rows_of)
        ended = torch.zeros(len(of_row), dtype=torch.bool, device=self.device)
        index = torch.arange(len(of_row), device=self.device)
        return _Batch(index, out.logits[rows_of, -1], mask[rows_of], out.past_key_values, ended)

    def _forward(self, batch: _Batch, chosen: Tensor) -> _Batch:
        """Feeds the chosen tokens; ended rows leave first, once there are enough of them."""
        share = float(batch.ended.float().mean())
        if _LEAVE_SHARE <= share < 1.0:
            stay = (~batch.ended).nonzero().squeeze(1)
            batch.cache.batch_select_indices(stay)
            batch = _Batch(batch.index[stay], batch.logits, batch.mask[stay], batch.cache, batch.ended[stay])
            chosen = chosen[stay]
        mask = torch.cat([batch.mask, batch.mask.new_ones(batch.index.numel(), 1)], dim=1)
        out = self.model(
            input_ids=chosen.unsqueeze(1),
            attention_mask=mask,
            position_ids=mask.sum(1, keepdim=True) - 1,
            past_key_values=batch.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return _Batch(batch.index, out.logits[:, -1], mask, out.past_key_values, batch.ended)

    def _seen_tokens(self, vocabulary: int) -> Tensor | None:
        """(R, V) bool: tokens of the prompt and the completion so far, when a repetition penalty reads them."""
        if all(one.repetition_penalty == 1.0 for _, one in self.wanted):
            return None
        seen = torch.zeros(len(self.wanted), vocabulary, dtype=torch.bool, device=self.device)
        for row, (prompt, _) in enumerate(self.wanted):
            seen[row, torch.tensor(prompt, device=self.device)] = True
        return seen


class _Sampler:
    """The sampling options of all rows as columns, so that one call shapes the whole batch."""

    def __init__(self, sampling: Sequence[Sampling], device: torch.device) -> None:
        def column(values: list[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float32, device=device)

        self.temperature = column([one.temperature for one in sampling])
        self.penalty = column([one.repetition_penalty for one in sampling])
        self.min_p = column([one.min_p for one in sampling])
        self.top_p = column([one.top_p for one in sampling])
        self.top_k = torch.tensor([one.top_k for one in sampling], device=device)
        self.greedy = self.temperature == 0
        self.shapes = any(one.min_p > 0 or one.top_p < 1 or one.top_k > 0 for one in sampling)

    def choose(
        self, logits: Tensor, index: Tensor, draws: Tensor, seen: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The next token of each row and its log-prob under the distribution it was drawn from. (R,), (R,)."""
        logits = logits.float()
        if seen is not None:
            penalty = self.penalty[index].unsqueeze(1)
            punished = torch.where(logits > 0, logits / penalty, logits * penalty)
            logits = torch.where(seen[index], punished, logits)
        greedy = self.greedy[index].unsqueeze(1)
        logits = logits / torch.where(greedy, 1.0, self.temperature[index].unsqueeze(1))
        if self.shapes:
            logits = torch.where(greedy, logits, self._truncate(logits, index))
        logprobs = logits.log_softmax(-1)
        chosen = torch.where(greedy.squeeze(1), logprobs.argmax(-1), _inverse_cdf(logprobs, draws))
        return chosen, logprobs.gather(1, chosen.unsqueeze(1)).squeeze(1)

    def _truncate(self, logits: Tensor, index: Tensor) -> Tensor:
        """min-p, then top-k, then top-p: vLLM's order. Dropped tokens get -inf."""
        probs = logits.softmax(-1)
        floor = probs.amax(-1, keepdim=True) * self.min_p[index].unsqueeze(1)
        logits = logits.masked_fill(probs < floor, -torch.inf)
        ordered, order = logits.sort(-1, descending=True)
        rank = torch.arange(logits.size(-1), device=logits.device).unsqueeze(0)
        top_k = self.top_k[index].unsqueeze(1)
        ordered = ordered.masked_fill((top_k > 0) & (rank >= top_k), -torch.inf)
        before = ordered.softmax(-1).cumsum(-1).roll(1, -1)  # mass of the likelier tokens
        before[:, 0] = 0.0
        ordered = ordered.masked_fill(before >= self.top_p[index].unsqueeze(1), -torch.inf)
        return torch.empty_like(logits).scatter_(1, order, ordered)


def _inverse_cdf(logprobs: Tensor, draws: Tensor) -> Tensor:
    """The token at which the cumulative probability passes the draw. (R, V), (R,) in [0, 1) -> (R,)."""
    cumulative = (
        logprobs.double().exp().cumsum(-1)
    )  # float64: a large vocabulary's tail would drown in float32
    target = (draws * cumulative[:, -1]).unsqueeze(1)
    chosen = torch.searchsorted(cumulative, target, right=True).squeeze(1)
    return chosen.clamp(max=logprobs.size(-1) - 1)


def _uniform_draws(sampling: Sequence[Sampling]) -> Tensor:
    """(R, T) in [0, 1), float64: all that the rows will need, each from its own seed."""
    longest = max(one.max_new_tokens for one in sampling)
    draws = torch.empty(len(sampling), longest, dtype=torch.float64)
    for row, one in enumerate(sampling):
        generator = None if one.seed is None else torch.Generator().manual_seed(one.seed)
        draws[row] = torch.rand(longest, dtype=torch.float64, generator=generator)
    return draws


def _stop_table(stops: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """(R, S) stop tokens, filled up with -1, which no token is."""
    width = max(1, max(len(row) for row in stops))
    return torch.tensor([[*row, *[-1] * (width - len(row))] for row in stops], device=device)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout off and the cache allowed (gradient checkpointing forbids it in training mode), then as before."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
