"""What an engine is: prompts in, tokens with their sampling log-probs out, and weights that can be replaced.

An engine knows no trainer and no rank. Its errors say which server or device, and what to do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:  # the errors and options are read where torch is not
    from torch import Tensor

Finish = Literal["stop", "length"]
NamedTensors = Iterable[tuple[str, "Tensor"]]
"""Names as in the model's checkpoint, full tensors, in any order; consumed once."""


class EngineError(RuntimeError):
    """The rollout cannot go on. The trainer saves a checkpoint and stops; the message says what to do."""


class EngineLost(EngineError):
    """The engine does not answer any more, or answers what no engine would."""


class EngineRefused(EngineError):
    """The engine answers, and says no: a wrong key, a missing option, a prompt that does not fit."""


class WeightsLost(EngineError):
    """The engine is there but holds other weights than it was given, as after a restart; a sync mends it."""


class WeightsDiffer(EngineError):
    """After a sync the engine still gives other log-probs than the trainer."""


@dataclass(frozen=True)
class Sampling:
    """How to sample; the same names for every engine.

    temperature         0 = greedy
    top_p               1 = off
    top_k               0 = off
    min_p               0 = off
    repetition_penalty  1 = off
    seed                row i of a call draws from seed + i; None: from the engine's own randomness
    n                   completions per prompt
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_new_tokens: int = 256
    stop_token_ids: tuple[int, ...] = ()
    seed: int | None = None
    n: int = 1

    def __post_init__(self) -> None:
        for name, value, good in (
            ("temperature", self.temperature, self.temperature >= 0),
            ("top_p", self.top_p, 0 < self.top_p <= 1),
            ("top_k", self.top_k, self.top_k >= 0),
            ("min_p", self.min_p, 0 <= self.min_p <= 1),
            ("repetition_penalty", self.repetition_penalty, self.repetition_penalty > 0),
            ("max_new_tokens", self.max_new_tokens, self.max_new_tokens >= 1),
            ("n", self.n, self.n >= 1),
        ):
            if not good:
                raise ValueError(f"Sampling: {name} = {value} is out of range")

    @property
    def truncating(self) -> frozenset[str]:
        """The options that make this another distribution than the model's at this temperature."""
        neutral = Sampling()
        shaping = {
            "top_p": (self.top_p, neutral.top_p),
            "top_k": (self.top_k, neutral.top_k),
            "min_p": (self.min_p, neutral.min_p),
            "repetition_penalty": (self.repetition_penalty, neutral.repetition_penalty),
        }
        return frozenset(name for name, (value, off) in shaping.items() if value != off)


@dataclass(frozen=True)
class Completion:
    """One continuation of a prompt, sampled unless it says otherwise.

    token_ids  the new tokens, the stop token included when one ended it
    logprobs   of each, under the distribution it was drawn from (after temperature and truncation), in nats
    finish     "stop": a stop token ended it; "length": max_new_tokens did
    segments   (weight version, number of tokens) in order; more than one after a continuation
    logged     an answer of the data: no weights made it, so it has no segments; `logprobs` are those stored with
               it, or 0
    """

    token_ids: list[int]
    logprobs: list[float]
    finish: Finish
    segments: tuple[tuple[int, int], ...]
    logged: bool = False

    @property
    def versions(self) -> list[int]:
        """The weight version of each token."""
        return [version for version, length in self.segments for _ in range(length)]


class Engine(Protocol):
    """Generates with weights that the trainer replaces.

    name             for messages and metrics
    version          of the weights it holds: what `update_weights` was last told; None before the first
    shared           one engine serves all ranks, and only the main process sends it weights
    shares_weights   it generates with the trainer's own tensors, so nothing is ever sent
    looks_ahead      `generate` may be called from another thread while the trainer trains
    dtype            it computes in: "float32", "bfloat16", "float16"
    replicas         copies of the weights that it samples from now: servers that take part, 1 inside a trainer
    """

    name: str
    version: int | None
    shared: bool
    shares_weights: bool
    looks_ahead: bool
    dtype: str

    @property
    def replicas(self) -> int: ...

    def generate(self, prompts: list[list[int]], sampling: Sampling | Sequence[Sampling]) -> list[Completion]:
        """n completions per prompt, prompt-major. One `Sampling` for all, or one (with n = 1) a prompt."""
        ...

    def update_weights(self, named_tensors: NamedTensors, version: int) -> None: ...

    def weight_checksums(self) -> Mapping[str, tuple[str, int]]:
        """name -> (dtype, checksum) of the weights it was last given, or, before any, of its checkpoint."""
        ...

    def health(self) -> None:
        """Returns when the engine can serve; raises EngineLost or EngineRefused."""
        ...

    def close(self) -> None: ...


def rows(
    prompts: Sequence[list[int]], sampling: Sampling | Sequence[Sampling]
) -> list[tuple[list[int], Sampling]]:
    """The call as single completions: (prompt, its own Sampling with n = 1 and its own seed), prompt-major."""
    if isinstance(sampling, Sampling):
        return [
            (
                prompt,
                replace(
                    sampling, n=1, seed=None if sampling.seed is None else sampling.seed + p * sampling.n + i
                ),
            )
            for p, prompt in enumerate(prompts)
            for i in range(sampling.n)
        ]
    if any(one.n != 1 for one in sampling):
        raise ValueError("one Sampling a prompt goes with n = 1; repeat the prompt instead")
    return list(zip(prompts, sampling, strict=True))


def stable_seed(*parts: int | str) -> int:
    """A seed that depends on nothing but `parts`: the same on every machine and after every resume. 48 bits, so
    that adding row numbers stays within a signed 64-bit integer."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")
