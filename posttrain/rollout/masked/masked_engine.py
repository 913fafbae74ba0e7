"""Generation with a masked-diffusion model: a canvas of masks is revealed token by token, block by block.

The sampler of LLaDA, https://arxiv.org/abs/2502.09992, appendix B (semi-autoregressive, low-confidence remasking),
with its neighbours' choices of what to reveal next (Dream: entropy, margin). In each pass every open position of
the block gets a token, argmax(logits + T * Gumbel); the most confident ones are revealed and never change again.

Confidence is read off the logits without noise. The Gumbel noise is float64: in lower precision the argmax is not
a sample of the softmax any more (https://arxiv.org/abs/2409.02908). Each row draws from its own generator and has
its own count of tokens to reveal, so that what it becomes does not depend on its neighbours.

Shapes: R rows, S canvas columns (prompt and completion), K columns of a block, V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, overload

import torch
from torch import Tensor

from posttrain.process.phases import PHASES
from posttrain.rollout.base import Completion, NamedTensors, Sampling, rows
from posttrain.rollout.checksum import dtype_name, signature
from posttrain.rollout.masked.block_reader import BlockReader, readers_of
from posttrain.rollout.masked.predictor import MaskPredictor, evaluating
from posttrain.rollout.masked.sampler_options import DiffusionSampling, Remasking, schedule

_LAST = 1e6  # taken off the confidence of an end token that must wait; confidences lie within [-log V, 1]


@dataclass(frozen=True)
class Filled:
    """A finished canvas.

    tokens    (R, S)
    logprobs  (R, S)  of each revealed token under softmax(logits / T), or softmax(logits) at T = 0, in the pass
                      that revealed it; 0 elsewhere. Not a likelihood: it does not price the order
    order     (R, S)  the pass that revealed the position, counted from 0; -1 where nothing was open
    """

    tokens: Tensor
    logprobs: Tensor
    order: Tensor


@torch.no_grad()
def fill(
    reader: Callable[[], BlockReader],
    tokens: Tensor,
    is_open: Tensor,
    start: int,
    *,
    mask_id: int,
    options: DiffusionSampling,
    temperature: Tensor,
    generators: Sequence[torch.Generator],
    end_ids: Sequence[int] = (),
    prompt: Tensor | None = None,
    goes_on: Callable[[bool], bool] = bool,
) -> Filled:
    """Reveals every open position, in blocks of columns from `start` on.

    reader       makes what gives the logits of a block
    is_open      (R, S) bool, positions to fill; a row may have fewer than others, in any block
    temperature  (R,), 0 = argmax
    generators   one per row, on the tokens' device
    prompt       (R, S) bool, what guidance hides for its unconditional pass
    goes_on      whether a flag is true on any rank: asked before each pass whose number `confidence` leaves open
    """
    block, blocks, passes = schedule(options, tokens.shape[1] - start)
    tokens = torch.where(is_open, mask_id, tokens)
    logprobs = torch.zeros(tokens.shape, device=tokens.device)
    order = torch.full_like(tokens, -1)
    ends = torch.as_tensor(list(end_ids), device=tokens.device, dtype=tokens.dtype)
    read = _Guided(reader, is_open.new_zeros(is_open.shape) if prompt is None else prompt, mask_id, options)
    turn = 0
    for b in range(blocks):
        columns = slice(start + b * block, start + (b + 1) * block)
        left = is_open[:, columns].clone()
        counts = left.sum(1)
        first = turn
        while turn < first + passes if options.confidence is None else goes_on(bool(left.any())):
            logits = read(tokens, columns, first=turn == first)
            rows = _writing(left, options.confidence)
            drawing = [generators[row] for row in rows.tolist()]
            logits = _forbid(logits[rows], mask_id, ends if options.end_rule == "never" else ends[:0])
            chosen, picked = _choose(logits, temperature[rows], drawing)
            keys = _confidence(logits, chosen, options.remasking, drawing)
            if options.end_rule == "last":
                keys = keys - _LAST * torch.isin(chosen, ends)
            i, here = turn - first, left[rows]
            share = counts[rows] // passes + (i < counts[rows] % passes).long()
            now = _revealed(keys.masked_fill(~here, -torch.inf), share, options.confidence) & here
            for kept, new in ((tokens, chosen), (logprobs, picked), (order, torch.full_like(chosen, turn))):
                kept[rows, columns] = torch.where(now, new, kept[rows, columns])
            left[rows] = here & ~now
            turn += 1
    return Filled(tokens, logprobs, order)


class _Guided:
    """Logits of a block in float64, (R, K, V); under guidance pushed away from those without a prompt."""

    def __init__(
        self, reader: Callable[[], BlockReader], prompt: Tensor, mask_id: int, options: DiffusionSampling
    ) -> None:
        self._prompt, self._mask_id, self._scale = prompt, mask_id, options.cfg_scale
        self._read = reader()
        self._read_without = reader() if options.cfg_scale else None

    def __call__(self, tokens: Tensor, columns: slice, *, first: bool) -> Tensor:
        conditional = self._read(tokens, columns, first).double()
        if self._read_without is None:
            return conditional
        hidden = torch.where(self._prompt, self._mask_id, tokens)
        unconditional = self._read_without(hidden, columns, first).double()
        return unconditional + (self._scale + 1) * (conditional - unconditional)


def _writing(left: Tensor, confidence: float | None) -> Tensor:
    """The rows that take part in a pass. Where each has its own number of passes a row that is done with its block
    leaves, so that the random numbers it uses up do not depend on its neighbours."""
    rows = torch.arange(left.size(0), device=left.device)
    return rows if confidence is None else rows[left.any(1)]


def _forbid(logits: Tensor, mask_id: int, others: Tensor) -> Tensor:
    logits[..., mask_id] = -torch.inf  # the mask is never an answer, however an untrained model scores it
    logits[..., others] = -torch.inf
    return logits


def _uniform(shape: tuple[int, ...], generators: Sequence[torch.Generator], device: torch.device) -> Tensor:
    """(R, *shape) float64 in [0, 1), each row from its own generator."""
    draws = torch.empty(len(generators), *shape, dtype=torch.float64, device=device)
    for row, generator in zip(draws, generators, strict=True):
        torch.rand(shape, dtype=torch.float64, device=device, generator=generator, out=row)
    return draws


def _choose(
    logits: Tensor, temperature: Tensor, generators: Sequence[torch.Generator]
) -> tuple[Tensor, Tensor]:
    """A token for each position and its log-prob. (R, K, V) float64 -> (R, K), (R, K)."""
    heat = temperature.to(logits).view(-1, 1, 1)
    noisy = logits
    if bool((temperature > 0).any()):
        draws = _uniform(tuple(logits.shape[1:]), generators, logits.device)
        noisy = torch.where(heat > 0, logits - heat * torch.log(-torch.log(draws)), logits)
    chosen = noisy.argmax(-1)
    shaped = (logits / torch.where(heat > 0, heat, 1.0)).log_softmax(-1)
    return chosen, shaped.gather(-1, chosen.unsqueeze(-1)).squeeze(-1).float()


def _confidence(
    logits: Tensor, chosen: Tensor, remasking: Remasking, generators: Sequence[torch.Generator]
) -> Tensor:
    """What decides a position's turn, from the logits without noise: larger goes first. (R, K)."""
    if remasking == "random":
        return _uniform(tuple(chosen.shape[1:]), generators, logits.device)
    logprobs = logits.log_softmax(-1)
    if remasking == "low_confidence":
        return logprobs.gather(-1, chosen.unsqueeze(-1)).squeeze(-1).exp()
    probs = logprobs.exp()
    if remasking == "entropy":
        return torch.where(probs > 0, probs * logprobs, 0.0).sum(-1)
    top = probs.topk(2, dim=-1).values
    return top[..., 0] - top[..., 1]


def _revealed(keys: Tensor, count: Tensor, confidence: float | None) -> Tensor:
    """Which of each row's positions (R, K) get their token: the `count` (R,) of largest key, or those from `confidence`
    on and the largest in any case. Ties go to the left."""
    ranks = keys.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    if confidence is None:
        return ranks < count.unsqueeze(1)
    return (ranks < 1) | (keys >= confidence)


class MaskedDiffusionEngine:
    """The sampler as an `Engine`: it generates with the trainer's own model, so no weights are sent.

    predicting  yields the predictor to run, ready to be called on this rank. Every rank must bring the same number of
                rows: the number of passes is then the same, which sharded weights need
    any_rank    whether a flag is true on any rank; what keeps the number of passes the same under `confidence`
    """

    name = "masked_diffusion"
    shared = False
    shares_weights = True
    looks_ahead = False
    replicas = 1

    def __init__(
        self,
        predicting: Callable[[], AbstractContextManager[MaskPredictor]],
        options: DiffusionSampling | None = None,
        *,
        pad_token_id: int,
        dtype: torch.dtype = torch.float32,
        any_rank: Callable[[bool], bool] = bool,
    ) -> None:
        self._predicting = predicting
        self._any_rank = any_rank
        self.options = options or DiffusionSampling()
        self._pad = pad_token_id
        self.dtype = dtype_name(dtype)
        self.version: int | None = None

    @classmethod
    def of(
        cls, predictor: MaskPredictor, options: DiffusionSampling | None = None, *, pad_token_id: int
    ) -> MaskedDiffusionEngine:
        """Around a model that this process holds whole."""
        dtype = next(predictor.model.parameters()).dtype
        return cls(lambda: nullcontext(predictor), options, pad_token_id=pad_token_id, dtype=dtype)

    @overload
    def generate(
        self, prompts: list[list[int]], sampling: Sampling | Sequence[Sampling]
    ) -> list[Completion]: ...
    @overload
    def generate(
        self,
        prompts: list[list[int]],
        sampling: Sampling | Sequence[Sampling],
        *,
        return_trace: Literal[True],
    ) -> list[tuple[Completion, list[int]]]: ...
    @torch.no_grad()
    def generate(
        self,
        prompts: list[list[int]],
        sampling: Sampling | Sequence[Sampling],
        *,
        return_trace: bool = False,
    ) -> Any:
        """n completions per prompt, prompt-major, each cut behind its first stop token.

        return_trace  each with the pass that revealed every position of its canvas, max_new_tokens of them
        """
        wanted = rows(prompts, sampling)
        self._check([one for _, one in wanted])
        done: list[tuple[Completion, list[int]]] = []
        with (
            PHASES.within("generating", len(wanted)) as phase,
            self._predicting() as predictor,
            evaluating(predictor.model),
        ):
            while len(done) < len(wanted):
                part = wanted[len(done) : len(done) + self.options.sampler_rows]
                done += self._fill_rows(predictor, part, partial(phase.at, len(done)))
        return done if return_trace else [completion for completion, _ in done]

    def _check(self, sampling: Sequence[Sampling]) -> None:
        for one in sampling:
            if one.truncating:
                raise ValueError(
                    f"the masked-diffusion engine has no {', '.join(sorted(one.truncating))}; leave it out"
                )
            if one.max_new_tokens != sampling[0].max_new_tokens:
                raise ValueError(
                    "one call fills canvases of one length: give every prompt the same max_new_tokens"
                )

    def _fill_rows(
        self,
        predictor: MaskPredictor,
        wanted: Sequence[tuple[list[int], Sampling]],
        tell: Callable[[str], None],
    ) -> list[tuple[Completion, list[int]]]:
        device = next(predictor.model.parameters()).device
        width, length = max(len(prompt) for prompt, _ in wanted), wanted[0][1].max_new_tokens
        ids = torch.full((len(wanted), width + length), self._pad, device=device)
        present = torch.ones_like(ids)
        for row, (prompt, _) in enumerate(wanted):
            ids[row, width - len(prompt) : width] = torch.tensor(prompt, device=device, dtype=ids.dtype)
            present[row, : width - len(prompt)] = 0
        is_open = torch.zeros_like(ids, dtype=torch.bool)
        is_open[:, width:] = True
        stops = sorted({token for _, one in wanted for token in one.stop_token_ids})
        filled = fill(
            _counted(readers_of(predictor, present, self.options.cache), tell),
            ids,
            is_open,
            width,
            mask_id=predictor.mask_id,
            options=self.options,
            temperature=torch.tensor([one.temperature for _, one in wanted], device=device),
            generators=[_generator(one.seed, device) for _, one in wanted],
            end_ids=stops,
            prompt=~is_open & present.bool(),
            goes_on=self._any_rank,
        )
        parts = zip(
            filled.tokens[:, width:].tolist(),
            filled.logprobs[:, width:].tolist(),
            filled.order[:, width:].tolist(),
            wanted,
            strict=True,
        )
        return [
            (self._completion(tokens, logprobs, one), order) for tokens, logprobs, order, (_, one) in parts
        ]

    def _completion(self, tokens: list[int], logprobs: list[float], one: Sampling) -> Completion:
        ends = [i for i, token in enumerate(tokens) if token in one.stop_token_ids]
        length = ends[0] + 1 if ends else len(tokens)
        finish = "stop" if ends else "length"
        return Completion(tokens[:length], logprobs[:length], finish, ((self.version or 0, length),))

    def update_weights(self, named_tensors: NamedTensors, version: int) -> None:
        """The weights are the trainer's own; only their version is noted. `named_tensors` is still consumed,
        because gathering them may be a collective."""
        for _ in named_tensors:
            pass
        self.version = version

    def weight_checksums(self) -> Mapping[str, tuple[str, int]]:
        with self._predicting() as predictor:
            return {name: signature(tensor) for name, tensor in predictor.model.named_parameters()}

    def health(self) -> None:
        return None

    def close(self) -> None:
        return None


def _counted(reader: Callable[[], BlockReader], tell: Callable[[str], None]) -> Callable[[], BlockReader]:
    """The same, saying which forward pass of these canvases is computed."""
    passes = itertools.count(1)

    def counted() -> BlockReader:
        read = reader()

        def told(tokens: Tensor, columns: slice, first: bool) -> Tensor:
            tell(f"pass {next(passes)}")
            return read(tokens, columns, first)

        return told

    return counted


def _generator(seed: int | None, device: torch.device) -> torch.Generator:
    generator = torch.Generator(device)
    if seed is None:
        generator.seed()
        return generator
    return generator.manual_seed(seed)
