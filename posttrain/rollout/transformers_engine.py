"""Generation with the model in training itself, in this process: no second copy, no sync, no other package.

Against `model.generate`: equal prompts are read once, the cache has room from the start, rows that have ended leave the
batch, the log-prob of each token comes out with it, and row i draws from its own seed, so that a completion does not
depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from posttrain.process.phases import PHASES, Open
from posttrain.rollout.base import Completion, NamedTensors, Sampling, rows
from posttrain.rollout.checksum import dtype_name, signature
from posttrain.rollout.packed_products import packed_products
from posttrain.rollout.preallocated import preallocated
from posttrain.rollout.sampler import Sampler, uniform_draws
from posttrain.rollout.shared_prompts import SharedPrompts, decoding, shared_prompts

_LEAVE_SHARE = (
    0.125  # rows are taken out of the cache once this share of them has ended: each removal copies it
)


@dataclass
class _Batch:
    """The rows still being written. R rows, L cached positions, V vocabulary."""

    index: Tensor  # (R,) which row of the call each one is
    logits: Tensor  # (R, V) of the next token
    mask: Tensor | None  # (R, L); None where no prompt is padded
    length: int  # L
    cache: Any
    ended: Tensor  # (R,) bool
    prompts: SharedPrompts | None  # where prompts are read once for their rows; the cache holds the rest then


class TransformersEngine:
    """`generating` yields the model to run, ready to be called on this rank (gathered, unwrapped).

    any_rank  whether a flag is true on any rank: where the weights are sharded each forward is a collective, so a
              rank that is done keeps stepping until all are
    max_rows  rows written at a time; bounds the cache
    products  dtype of the matrix products in the model's own forward pass (bfloat16 under autocast)
    """

    name = "transformers"
    shared = False
    shares_weights = True
    looks_ahead = False
    replicas = 1

    def __init__(
        self,
        generating: Callable[[], AbstractContextManager[nn.Module]],
        *,
        pad_token_id: int,
        dtype: torch.dtype = torch.float32,
        any_rank: Callable[[bool], bool] | None = None,
        max_rows: int = 256,
        products: torch.dtype = torch.float32,
    ) -> None:
        self._generating, self._products = generating, products
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
            packed_products(model, self._steps(wanted), self._products),
        ):
            while self._goes_on(len(done) < len(wanted)):
                part = wanted[len(done) : len(done) + self._max_rows]
                # A rank with nothing left still steps with the others, on a row that nobody reads.
                writing = _Writing(model, part or wanted[:1], self._pad, self._goes_on, self.version or 0)
                done += writing.run(phase, len(done))[: len(part)]
        return done

    def _steps(self, wanted: Sequence[tuple[list[int], Sampling]]) -> int:
        """Decoding steps with weights that lie here as they are, and for more than one row at a time."""
        sharded = self._any_rank is not None
        return 0 if sharded or len(wanted) < 2 else max(one.max_new_tokens for _, one in wanted)

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
        self.draws = uniform_draws([one for _, one in wanted]).to(self.device)
        self.writing = len(wanted)  # rows that have not ended
        self.sampler = Sampler([one for _, one in wanted], self.device)

    def run(self, phase: Open, done_before: int) -> list[Completion]:
        phase.at(done_before, "reading prompts")
        batch = self._read_prompts()
        with decoding(self.model, batch.prompts) as options:
            return self._write(batch, options, phase, done_before)

    def _write(
        self, batch: _Batch, options: dict[str, Any], phase: Open, done_before: int
    ) -> list[Completion]:
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
            batch = self._forward(batch, chosen, options)
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
        longest = max(one.max_new_tokens for _, one in self.wanted)
        padded = any(len(prompt) < width for prompt in distinct)
        cache = out.past_key_values
        prompts = shared_prompts(self.model, cache, rows_of, mask if padded else None, longest)
        if prompts is None:
            cache = preallocated(cache, rows_of, width + longest)
        ended = torch.zeros(len(of_row), dtype=torch.bool, device=self.device)
        index = torch.arange(len(of_row), device=self.device)
        seen = mask[rows_of] if padded else None
        return _Batch(index, out.logits[rows_of, -1], seen, width, cache, ended, prompts)

    def _forward(self, batch: _Batch, chosen: Tensor, options: dict[str, Any]) -> _Batch:
        """Feeds the chosen tokens; ended rows leave first, once there are enough of them."""
        share = float(batch.ended.float().mean())
        if _LEAVE_SHARE <= share < 1.0:
            stay = (~batch.ended).nonzero().squeeze(1)
            (batch.prompts or batch.cache).batch_select_indices(stay)
            mask = None if batch.mask is None else batch.mask[stay]
            batch = replace(batch, index=batch.index[stay], mask=mask, ended=batch.ended[stay])
            chosen = chosen[stay]
        rows, mask = batch.index.numel(), batch.mask
        if mask is None:
            positions = torch.full((rows, 1), batch.length, device=self.device)
        else:
            mask = torch.cat([mask, mask.new_ones(rows, 1)], dim=1)
            positions = mask.sum(1, keepdim=True) - 1
        out = self.model(
            input_ids=chosen.unsqueeze(1),
            attention_mask=mask,
            position_ids=positions,
            past_key_values=batch.cache,
            use_cache=True,
            logits_to_keep=1,
            **options,
        )
        return replace(
            batch, logits=out.logits[:, -1], mask=mask, length=batch.length + 1, cache=out.past_key_values
        )

    def _seen_tokens(self, vocabulary: int) -> Tensor | None:
        """(R, V) bool: tokens of the prompt and the completion so far, when a repetition penalty reads them."""
        if all(one.repetition_penalty == 1.0 for _, one in self.wanted):
            return None
        seen = torch.zeros(len(self.wanted), vocabulary, dtype=torch.bool, device=self.device)
        for row, (prompt, _) in enumerate(self.wanted):
            seen[row, torch.tensor(prompt, device=self.device)] = True
        return seen


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
