"""Sending the policy's weights to an engine, on all ranks together, and the proof that they arrived."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any, TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn

from posttrain.rollout.base import (
    Completion,
    Engine,
    EngineError,
    EngineLost,
    EngineRefused,
    Sampling,
    WeightsDiffer,
    WeightsLost,
)
from posttrain.rollout.proof import explain_gap, first_difference, largest_gap
from posttrain.trainers.models.weights import policy_weights

T = TypeVar("T")
Score = Callable[[list[list[int]], list[list[int]]], Tensor]
"""Prompts and completions to the trainer's log-probs of the completions' tokens, (B, T), right-padded."""

_ERRORS = {one.__name__: one for one in (EngineLost, EngineRefused, WeightsLost, WeightsDiffer, EngineError)}
_PROBE_TOKENS = 16


def together(task: Callable[[], T]) -> T:
    """The task's result, unless it failed on any rank: then its error on every rank, so that none waits for ever."""
    result, error = None, None
    try:
        result = task()
    except EngineError as caught:
        error = caught
    reports = gather_object([None if error is None else (type(error).__name__, str(error))])
    failed = next((report for report in reports if report is not None), None)
    if failed is not None:
        raise _ERRORS.get(failed[0], EngineError)(failed[1]) from error
    return result  # type: ignore[return-value]  # None only if the task returned it


class WeightSync:
    """One trainer's weights into one engine.

    limit      largest gap the proof allows, in nats
    score      the trainer's side of the proof
    log        where numbers go: name, value
    """

    def __init__(
        self,
        engine: Engine,
        model: nn.Module,
        accelerator: Accelerator,
        *,
        limit: float,
        score: Score,
        log: Callable[[str, float], None],
    ) -> None:
        self._engine, self._model, self._accelerator = engine, model, accelerator
        self._limit, self._score, self._log = limit, score, log

    @property
    def _speaks(self) -> bool:
        """Whether this rank talks to the engine: each to its own, only the main process to a shared one."""
        return not self._engine.shared or self._accelerator.is_main_process

    def update(self, version: int, probe: Sequence[list[int]], sampling: Sampling) -> None:
        """Sends the weights and proves it on a few tokens after the `probe` prompts.

        A transfer that breaks is tried once more for each server, in case one was restarted or is left out now. Raises
        EngineLost, WeightsDiffer, on every rank.
        """
        tries = 1 + (self._from_main(self._engine.replicas) if self._engine.shared else 0)
        for left in reversed(range(tries)):
            try:
                together(lambda: self._send(version))
                break
            except EngineLost:
                if left == 0:
                    raise
                together(lambda: self._engine.health() if self._speaks else None)
        self._engine.version = version
        if self._engine.shared:
            self._log("servers", float(self._from_main(self._engine.replicas)))
        if not self._engine.shares_weights:
            self._prove(version, probe, sampling)

    def _send(self, version: int) -> None:
        if self._engine.shares_weights:
            self._engine.update_weights([], version)
            return
        with closing(policy_weights(self._model, self._accelerator)) as weights:
            try:
                if self._speaks:
                    self._engine.update_weights(weights, version)
            finally:
                for _ in weights:  # the other ranks are gathering: see it through, whatever happened here
                    pass

    def _prove(self, version: int, prompts: Sequence[list[int]], sampling: Sampling) -> None:
        probe = Sampling(
            temperature=sampling.temperature or 1.0,
            max_new_tokens=min(_PROBE_TOKENS, sampling.max_new_tokens),
            seed=version,
        )
        chosen = list(prompts)
        if self._engine.shared and chosen:  # each server has one to answer, as requests are spread evenly
            chosen = [chosen[i % len(chosen)] for i in range(max(len(chosen), self._engine.replicas))]
        sampled = together(lambda: self._engine.generate(chosen, probe) if self._speaks else [])
        if self._engine.shared:
            chosen, sampled = self._from_main((chosen, sampled))
        trainer = self._score(chosen, [one.token_ids for one in sampled])
        gaps = gather_object([largest_gap([one.logprobs for one in sampled], trainer)])
        gap = next((one for one in gaps if one != one), max(gaps))  # a NaN on any rank is the verdict
        self._log("proof_gap", gap)
        if gap <= self._limit:
            return
        given = together(lambda: self._engine.weight_checksums() if self._speaks else {})
        with closing(policy_weights(self._model, self._accelerator)) as weights:
            found, compared = first_difference(weights, given)
        found = self._from_main(found)
        raise WeightsDiffer(explain_gap(gap, self._limit, self._engine.name, version, found, compared))

    def _from_main(self, value: Any) -> Any:
        carrier = [value]
        broadcast_object_list(carrier)
        return carrier[0]


def marked_versions(completions: Sequence[Completion]) -> list[list[int]]:
    """The weight version of every token."""
    return [completion.versions for completion in completions]
